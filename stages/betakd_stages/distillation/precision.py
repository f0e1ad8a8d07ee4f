"""Training in 16 bits: where it is refused, and fp16's scale of the loss, which must not become too small.

Gradients below 6e-8 are 0 in fp16, so accelerate multiplies the loss by a large number before the backward pass and
divides the gradients by it afterwards. Where they are not finite, that step is left out and the number halved: the
objective itself is finite then, and the run goes on. An objective that is not finite is another matter, which no
number before the loss mends: it stops the run (`objective.require_finite`).
"""

from typing import Any

import torch

from betakd_stages.choices import pick
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.settings import DistillSettings
from betakd_stages.weightings import WEIGHTINGS, GradientWeighting

SMALLEST_LOSS_SCALE = 2.0**-10
"""After 26 steps in a row without finite gradients, from accelerate's first scale of 65,536."""


def require_precision(settings: DistillSettings) -> None:
    """Nothing; raises ConfigError for bf16 on a GPU that lacks it, and for fp16 without a GPU or with a weighting that
    cannot use it."""
    precision, has_gpu = settings.training.precision, torch.cuda.is_available()
    if precision == "bf16" and has_gpu and not torch.cuda.is_bf16_supported():
        raise ConfigError("training.precision is bf16, which this GPU does not have: use fp16 or fp32")
    if precision != "fp16":
        return
    if not has_gpu:
        # accelerate would train in fp32 without a word.
        raise ConfigError("training.precision fp16 needs a GPU: use bf16, which runs anywhere, or fp32")
    name = settings.weighting.name
    if issubclass(pick("weighting", WEIGHTINGS, name), GradientWeighting):
        raise ConfigError(
            f"weighting {name} takes gradients of the loss as it is, but fp16 needs a scaled one: use "
            "training.precision bf16 or fp32, or another weighting"
        )


def loss_scale(scaler: Any) -> dict[str, float]:
    """`loss_scale` for metrics.jsonl; nothing without a scaler, that is in other precisions than fp16.

    Raises MismatchError where so many steps were left out that nothing is learned. Synchronises with the device.
    """
    if scaler is None:
        return {}
    scale = float(scaler.get_scale())
    if scale < SMALLEST_LOSS_SCALE:
        raise MismatchError(
            f"the gradients are not finite in fp16 even with the loss scaled by {scale:.1e}, step after step: use "
            "training.precision bf16 or fp32"
        )
    return {"loss_scale": scale}

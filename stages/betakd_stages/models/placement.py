"""Where a model's weights lie and how they run: devices, attention kernels, quantisation."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from betakd_stages.errors import ConfigError

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Placement:
    """How to run a model, by the words of `CacheTeacherSettings`; by default whole on one device, as it was saved."""

    attention: str = "auto"
    device_map: str = "single"
    quantisation: str = "none"
    double_quantisation: bool = False
    """Of int4: the scales of the weights are quantised, too."""
    language_model_only: bool = False
    """Quantise no linear layers but the language model's; else all but the head."""
    compute: str | None = None
    """The precision that quantised layers and attention compute in, where it is not that of the weights."""

    def arguments(self, precision: str, left_whole: Sequence[str] | None = None) -> dict[str, Any]:
        """What `from_pretrained` needs for this; the modules named in `left_whole` are not quantised.

        Raises ConfigError for what cannot run here, naming what it lacks.
        """
        arguments: dict[str, Any] = {}
        if self.attention != "auto":
            _require_attention(self.attention, self.compute or precision)
            arguments["attn_implementation"] = self.attention
        if self.quantisation != "none":
            _require_bitsandbytes(self.quantisation)
            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantisation == "int8",
                load_in_4bit=self.quantisation == "int4",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=self.double_quantisation,
                bnb_4bit_compute_dtype=COMPUTE_TYPES[self.compute or precision],
                llm_int8_skip_modules=None if left_whole is None else list(left_whole),  # in spite of its name
            )
            arguments["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
        if self.device_map == "auto":
            arguments["device_map"] = "auto"
        return arguments


def place(model: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
    """Move a model to the GPU, where there is one; one that was loaded with a device map lies where it belongs."""
    if "device_map" not in arguments:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.nn.Module.to(model, device)


def _require_attention(attention: str, precision: str) -> None:
    if attention != "flash_attention_2":
        return
    missing = [
        *([] if torch.cuda.is_available() else ["a GPU"]),
        *([] if importlib.util.find_spec("flash_attn") else ["the package flash-attn (pip install flash-attn)"]),
        *([] if precision in ("bf16", "fp16") else [f"precision bf16 (found {precision})"]),
    ]
    if missing:
        raise ConfigError(f"attention flash_attention_2 needs {', '.join(missing)}: add that, or choose attention sdpa")


def _require_bitsandbytes(quantisation: str) -> None:
    if not importlib.util.find_spec("bitsandbytes"):
        raise ConfigError(
            f"quantisation {quantisation} needs the package bitsandbytes: install it (pip install "
            "'betakd-pipe[qlora]'), or leave quantisation out (bf16 halves the weights anywhere, device_map auto "
            "spreads them)"
        )

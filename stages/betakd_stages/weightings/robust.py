"""Weights from how far the teacher can be believed, which was fitted to cache and labels before training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from betakd_stages.weightings.base import PerChannel, WeightingOutput
from betakd_stages.weightings.fixed import FixedWeighting


class RobustWeighting(FixedWeighting):
    """The sum of w CE and beta s energy, s between 0 and 1 the trust in the teacher on the sample (`cache trust`).

    The energy of every token counts by the teacher's margin p1 - p2 there, unless the energy has a `confidence_gate`
    of its own: an answer of one token gives beta s (p1 - p2) energy. Nothing is learned, so there is no term of log
    beta, and the weights are bounded and do not depend on the length of the training.
    """

    uses_inputs = True
    own_inputs = ("trust",)
    confidence_gate = 1.0

    def __init__(self, channels: Sequence[str], input_size: int, *, beta: PerChannel = 10.0, **settings: Any) -> None:
        super().__init__(channels, input_size, beta=beta, **settings)

    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        betas = (inputs[:, :1] * self.betas).to(energies.dtype).masked_fill(~present, 0.0)
        weights = torch.full_like(cross_entropy, self.cross_entropy_weight)
        return WeightingOutput(weights * cross_entropy, betas * energies, betas, weights)

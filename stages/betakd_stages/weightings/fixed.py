"""Weights that are given, not learned."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from betakd_stages.errors import ConfigError
from betakd_stages.weightings.base import PerChannel, Weighting, WeightingOutput, per_channel


class FixedWeighting(Weighting):
    """The sum of w CE and beta energy with given betas; without the term of log beta, which would be a constant."""

    def __init__(self, channels: Sequence[str], input_size: int, *, beta: PerChannel = 1.0, **settings: Any) -> None:
        super().__init__(channels, input_size, **settings)
        betas = per_channel("beta", beta, self.channels)
        if bool((betas < 0).any()):
            raise ConfigError(f"beta is {betas.tolist()}: give weights of 0 or more")
        self.betas: Tensor
        self.register_buffer("betas", betas)

    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        betas = self.betas.to(energies.dtype) * present
        weights = torch.full_like(cross_entropy, self.cross_entropy_weight)
        return WeightingOutput(weights * cross_entropy, betas * energies, betas, weights)

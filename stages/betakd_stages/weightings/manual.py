"""Weights that bring every energy to the scale of the cross-entropy, measured once and frozen."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from betakd_stages.errors import ConfigError
from betakd_stages.processes import sum_over_processes
from betakd_stages.weightings.base import Weighting, WeightingOutput


class ManualWeighting(Weighting):
    """beta_k = mean CE / mean energy_k over the first batches, before any update; the paper's "manual" baseline.

    Until `remaining_batches` is 0 every call without gradients is a measurement, with betas of 1. Where several
    processes train, each measures as many batches and all of them count.
    """

    def __init__(self, channels: Sequence[str], input_size: int, *, num_batches: int = 16, **settings: Any) -> None:
        super().__init__(channels, input_size, **settings)
        if num_batches < 1:
            raise ConfigError(f"num_batches is {num_batches}: give 1 or more")
        self.num_batches = num_batches
        self.num_seen: Tensor
        self.energy_sums: Tensor
        self.cross_entropy_sums: Tensor
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
        # Sums over samples of energy and of cross-entropy where the channel is present, and the number of samples.
        self.register_buffer("energy_sums", torch.zeros(2, len(self.channels), dtype=torch.float64))
        self.register_buffer("cross_entropy_sums", torch.zeros(2, dtype=torch.float64))

    @property
    def remaining_batches(self) -> int:
        return max(0, self.num_batches - int(self.num_seen))

    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        """Raises ConfigError where gradients are asked for before the weights are measured, or an energy is 0."""
        if self.remaining_batches:
            if torch.is_grad_enabled():
                raise ConfigError(
                    f"manual weighting has measured {int(self.num_seen)} of {self.num_batches} batches: run "
                    f"{self.remaining_batches} more without gradients before training"
                )
            self._measure(cross_entropy, energies, present)
            betas = torch.ones_like(energies)
        else:
            betas = self.measured().to(energies.dtype).expand_as(energies)
        betas = betas.masked_fill(~present, 0.0)
        weights = torch.full_like(cross_entropy, self.cross_entropy_weight)
        return WeightingOutput(weights * cross_entropy, betas * energies, betas, weights)

    def measured(self) -> Tensor:
        """The frozen betas, `[C]`. Raises ConfigError where an energy was 0."""
        mean_energies = self.energy_sums[0] / self.energy_sums[1]
        for channel, energy in zip(self.channels, mean_energies.tolist(), strict=True):
            if not energy > 0:
                raise ConfigError(
                    f"channel {channel!r} has energy {energy} over the first {self.num_batches} batches, so no weight "
                    f"brings it to the scale of the cross-entropy: give fixed weights"
                )
        return self.cross_entropy_sums[0] / self.cross_entropy_sums[1] / mean_energies

    def _measure(self, cross_entropy: Tensor, energies: Tensor, present: Tensor) -> None:
        self.num_seen += 1
        of_energies = torch.stack([(energies * present).sum(dim=0), present.sum(dim=0)]).double()
        of_cross_entropy = torch.stack([cross_entropy.sum(), cross_entropy.new_tensor(len(cross_entropy))]).double()
        self.energy_sums += sum_over_processes(of_energies)
        self.cross_entropy_sums += sum_over_processes(of_cross_entropy)

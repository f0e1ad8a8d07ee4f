"""Weights that are learned with the student: one for each channel (task), or one for each sample and channel
(instance)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from betakd_stages.choices import pick
from betakd_stages.errors import ConfigError
from betakd_stages.weightings.base import PerChannel, Weighting, WeightingOutput, per_channel


def log_softplus(raw: Tensor) -> Tensor:
    """Log of softplus, finite for any finite `raw`."""
    # softplus underflows below about -100; there it equals the exponential.
    return torch.where(raw < -30.0, raw, softplus(raw.clamp(min=-30.0)).log())


def inverse_softplus(value: Tensor) -> Tensor:
    """The raw number whose softplus is `value` > 0."""
    return value + torch.log(-torch.expm1(-value))


POSITIVITY: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softplus": (log_softplus, inverse_softplus),
    "exp": (lambda raw: raw, torch.log),
}
"""From a raw number to log beta, and from beta to the raw number."""


class LearnedWeighting(Weighting):
    """w CE + the sum over present channels of beta energy - (d / 2) log beta, whose optimum is beta = d / (2 energy).

    A subclass gives the raw numbers. Source: paper, eq. 13 to 15, with one beta for each of several channels.
    """

    def __init__(
        self,
        channels: Sequence[str],
        input_size: int,
        *,
        initial_beta: PerChannel = 1.0,
        positivity: str = "softplus",
        dimension: PerChannel = 1.0,
        **settings: Any,
    ) -> None:
        """`dimension` is d: the paper defines it as the size of the activation and does not say what it used."""
        super().__init__(channels, input_size, **settings)
        betas = per_channel("initial_beta", initial_beta, self.channels)
        if bool((betas <= 0).any()):
            raise ConfigError(f"initial_beta is {betas.tolist()}: give numbers above 0")
        self._log_beta: Callable[[Tensor], Tensor]
        self._log_beta, inverse = pick("positivity", POSITIVITY, positivity)
        self.initial_raw = inverse(betas)
        self.dimensions: Tensor
        self.register_buffer("dimensions", per_channel("dimension", dimension, self.channels))

    def raw_numbers(self, inputs: Tensor) -> Tensor:
        """What positivity turns into betas, `[B, C]` or `[1, C]`, from standardised inputs `[B, F]`."""
        raise NotImplementedError

    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        log_betas = self._log_beta(self.raw_numbers(self.standardise(inputs))).expand_as(energies)
        betas = log_betas.exp().masked_fill(~present, 0.0)
        complexity = (0.5 * self.dimensions * log_betas).masked_fill(~present, 0.0)
        weights = torch.full_like(cross_entropy, self.cross_entropy_weight)
        objective = weights * cross_entropy + (betas * energies - complexity).sum(dim=1)
        return WeightingOutput(objective, betas, weights)


class TaskWeighting(LearnedWeighting):
    """One learned weight for each channel, the same for every sample."""

    def __init__(self, channels: Sequence[str], input_size: int, **settings: Any) -> None:
        super().__init__(channels, input_size, **settings)
        self.raw = nn.Parameter(self.initial_raw.clone())

    def raw_numbers(self, inputs: Tensor) -> Tensor:
        return self.raw.unsqueeze(0)


class InstanceWeighting(LearnedWeighting):
    """A weight for each sample and channel from a two-layer network on the sample's inputs. Source: paper, eq. 14.

    The last layer starts at zero, so that every sample starts with the initial beta.
    """

    uses_inputs = True

    def __init__(self, channels: Sequence[str], input_size: int, *, hidden_size: int = 128, **settings: Any) -> None:
        super().__init__(channels, input_size, **settings)
        if input_size == 0:
            raise ConfigError("instance weighting has no inputs: cache a pooled teacher feature, or name other inputs")
        last = nn.Linear(hidden_size, len(self.channels))
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(self.initial_raw)
        self.network = nn.Sequential(nn.Linear(input_size, hidden_size), nn.ReLU(), last)

    def raw_numbers(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

"""Weights that are learned with the student: one for each channel (task), or one for each sample and channel
(instance)."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
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

    has_log_beta = True

    def __init__(
        self,
        channels: Sequence[str],
        input_size: int,
        *,
        initial_beta: PerChannel = 1.0,
        positivity: str = "softplus",
        dimension: PerChannel = 1.0,
        learn_cross_entropy: bool = False,
        log_beta_limit: float = math.inf,
        **settings: Any,
    ) -> None:
        """`dimension` is d: the paper defines it as the size of the activation and does not say what it used.
        `learn_cross_entropy` gives the cross-entropy a learned weight too, as if it were a channel.
        `log_beta_limit` is how far log beta may go from its start, either way.
        """
        super().__init__(channels, input_size, **settings)
        betas = per_channel("initial_beta", initial_beta, self.channels)
        if bool((betas <= 0).any()):
            raise ConfigError(f"initial_beta is {betas.tolist()}: give numbers above 0")
        dimensions = per_channel("dimension", dimension, self.channels)
        self.learn_cross_entropy = learn_cross_entropy
        if learn_cross_entropy:
            # The cross-entropy comes first; where channels differ, it starts at 1 with d = 1.
            betas = torch.cat([_one_number(initial_beta), betas])
            dimensions = torch.cat([_one_number(dimension), dimensions])
        self._log_beta: Callable[[Tensor], Tensor]
        self._log_beta, inverse = pick("positivity", POSITIVITY, positivity)
        self.log_beta_limit = log_beta_limit
        self.initial_raw = inverse(betas)
        self.initial_log_betas: Tensor
        self.dimensions: Tensor
        self.register_buffer("initial_log_betas", betas.log())
        self.register_buffer("dimensions", dimensions)

    @abstractmethod
    def raw_numbers(self, inputs: Tensor) -> Tensor:
        """What positivity turns into betas, from standardised inputs `[B, F]`: `[B, C]` or `[1, C]`, with one column
        more, the first, where the cross-entropy's weight is learned."""

    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        log_betas = self._log_beta(self.raw_numbers(self.standardise(inputs)))
        low, high = self.initial_log_betas - self.log_beta_limit, self.initial_log_betas + self.log_beta_limit
        log_betas = log_betas.clamp(low, high).expand(len(energies), -1)
        betas, complexity = log_betas.exp(), 0.5 * self.dimensions * log_betas
        weights = torch.full_like(cross_entropy, self.cross_entropy_weight)
        offset = torch.zeros_like(cross_entropy)
        if self.learn_cross_entropy:
            weights, offset = weights * betas[:, 0], self.cross_entropy_weight * complexity[:, 0]
            betas, complexity = betas[:, 1:], complexity[:, 1:]
        betas, complexity = betas.masked_fill(~present, 0.0), complexity.masked_fill(~present, 0.0)
        return WeightingOutput(weights * cross_entropy - offset, betas * energies - complexity, betas, weights)


def _one_number(values: PerChannel) -> Tensor:
    return torch.tensor([1.0 if isinstance(values, Mapping) else float(values)])


class TaskWeighting(LearnedWeighting):
    """One learned weight for each channel, the same for every sample."""

    def __init__(self, channels: Sequence[str], input_size: int, **settings: Any) -> None:
        super().__init__(channels, input_size, **settings)
        self.raw = nn.Parameter(self.initial_raw.clone())

    def raw_numbers(self, inputs: Tensor) -> Tensor:
        return self.raw.unsqueeze(0)


class InstanceWeighting(LearnedWeighting):
    """A weight for each sample and channel from a two-layer network on the sample's inputs. Source: paper, eq. 14.

    The last layer starts at zero, so that every sample starts with the initial beta. `batch_means` puts the batch's
    mean energies in place of each sample's own, as the paper's code does: the network then learns nothing of samples,
    and the objective depends on the batch.
    """

    uses_inputs = True

    def __init__(
        self,
        channels: Sequence[str],
        input_size: int,
        *,
        hidden_size: int = 128,
        batch_means: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(channels, input_size, **settings)
        if input_size == 0:
            raise ConfigError("instance weighting has no inputs: cache a pooled teacher feature, or name other inputs")
        self.batch_means = batch_means
        last = nn.Linear(hidden_size, len(self.initial_raw))
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(self.initial_raw)
        self.network = nn.Sequential(nn.Linear(input_size, hidden_size), nn.ReLU(), last)

    def raw_numbers(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        if self.batch_means:
            means = (energies * present).sum(dim=0) / present.sum(dim=0).clamp(min=1)
            energies = means * present
            cross_entropy = cross_entropy.mean().expand_as(cross_entropy)
        return super().forward(cross_entropy, energies, present, inputs)


REFERENCE_SETTINGS: dict[str, dict[str, Any]] = {
    "task": {"positivity": "exp", "initial_beta": 0.5, "log_beta_limit": 5.0, "learn_cross_entropy": True},
    "instance": {
        "positivity": "exp",
        "dimension": 2.0,
        "log_beta_limit": 5.0,
        "learn_cross_entropy": True,
        "batch_means": True,
    },
}
"""What `semantics="reference"` sets: the paper's code, up to a constant. Its task objective (e^-s L + s) / 2 is
beta L - log(beta) / 2 with beta = e^-s / 2; its instance objective e^-s L + s is beta L - log beta with beta = e^-s."""


class KendallWeighting(TaskWeighting):
    """Homoscedastic uncertainty, the cross-entropy weighted too: the paper's code at task level (arXiv 1705.07115)."""

    def __init__(self, channels: Sequence[str], input_size: int, **settings: Any) -> None:
        super().__init__(channels, input_size, **{**REFERENCE_SETTINGS["task"], **settings})

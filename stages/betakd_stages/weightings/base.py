"""What every weighting is: a module that gives each sample a weight per channel and the objective they make."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from betakd_stages.errors import ConfigError

PerChannel = float | Mapping[str, float]
"""One number for every channel, or one for each by name."""


@dataclass(frozen=True, slots=True)
class WeightingOutput:
    """The weighted objective of a batch of B samples with C channels."""

    cross_entropy_terms: Tensor
    """`[B]`, what the labels add to the objective, unreduced."""
    channel_terms: Tensor
    """`[B, C]`, what each channel adds; 0 where it is absent."""
    betas: Tensor
    """`[B, C]`, the weights; 0 where a channel is absent."""
    cross_entropy_weights: Tensor
    """`[B]`."""

    @property
    def objective(self) -> Tensor:
        """`[B]`, the sum of all terms."""
        return self.cross_entropy_terms + self.channel_terms.sum(dim=1)


class Weighting(nn.Module, ABC):
    """Weights of the cross-entropy and the C channels of B samples."""

    uses_inputs: ClassVar[bool] = False
    """Whether the weights depend on the inputs `[B, F]`; where not, F may be 0."""
    has_log_beta: ClassVar[bool] = False
    """Whether the terms of the channels hold -(d / 2) log beta; given weights leave it out, it would be a constant."""
    own_inputs: ClassVar[tuple[str, ...]] = ()
    """The inputs by name, where those are not for the user to choose."""
    confidence_gate: ClassVar[float] = 0.0
    """The power of the gate (p1 - p2)^power on every token, for energies that name none of their own."""

    def __init__(
        self,
        channels: Sequence[str],
        input_size: int,
        *,
        input_mean: Tensor | None = None,
        input_deviation: Tensor | None = None,
        cross_entropy_weight: float = 1.0,
    ) -> None:
        """`input_mean` and `input_deviation` `[F]`, over the cache, standardise the inputs; None leaves them alone."""
        super().__init__()
        self.channels = tuple(channels)
        self.input_size = input_size
        self.cross_entropy_weight = cross_entropy_weight
        self.input_mean: Tensor
        self.input_deviation: Tensor
        self.register_buffer("input_mean", torch.zeros(input_size) if input_mean is None else input_mean.float())
        deviation = torch.ones(input_size) if input_deviation is None else input_deviation.float()
        # An input that is constant over the cache stays 0 instead of dividing by 0.
        self.register_buffer("input_deviation", deviation.masked_fill(deviation == 0, 1.0))

    @property
    def remaining_batches(self) -> int:
        """How many batches it has to see without gradients before training starts."""
        return 0

    def standardise(self, inputs: Tensor) -> Tensor:
        """Inputs `[B, F]` with mean 0 and deviation 1 over the cache, float32."""
        return (inputs.float() - self.input_mean) / self.input_deviation

    @abstractmethod
    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        """The objective of samples with `cross_entropy` `[B]`, `energies` `[B, C]`, bool `present` `[B, C]` (where a
        channel applies to a sample) and `inputs` `[B, F]`, not standardised."""


def per_channel(name: str, values: PerChannel, channels: Sequence[str]) -> Tensor:
    """The values as float32 `[C]`. Raises ConfigError where a mapping does not name exactly the channels."""
    if not isinstance(values, Mapping):
        return torch.full((len(channels),), float(values))
    if set(values) != set(channels):
        raise ConfigError(
            f"{name} is given for {', '.join(sorted(values)) or 'no channel'} but the channels are "
            f"{', '.join(channels) or 'none'}: give one number, or one for each channel"
        )
    for channel, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} of {channel} is {value!r}, expected a number: correct its value")
    return torch.tensor([float(values[channel]) for channel in channels])

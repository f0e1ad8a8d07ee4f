"""CTKD: forward KL at a temperature that is learned against the student (arXiv 2211.16231)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from betakd_stages.energies.base import Energy
from betakd_stages.energies.partition import kl
from betakd_stages.errors import ConfigError
from betakd_stages.statistics import Needs, StudentStatistics
from betakd_stages.tail import Temperature, require_inside
from betakd_stages.targets import TeacherTargets

NUM_TOP = 5
"""How many of the teacher's largest probabilities the temperature network sees."""


class CurriculumTemperature(Energy):
    """Forward KL at temperature minimum + span sigmoid(g), g one learned number.

    The gradient of g is reversed and scaled by a curriculum, (1 - cos(pi progress)) / 2 from 0 to 1 over the run: the
    temperature learns to make the student's task harder. `gradient_scale` is a fixed factor instead, +1 for none.
    """

    def __init__(
        self,
        *,
        minimum_temperature: float = 1.0,
        temperature_span: float = 4.0,
        maximum_temperature: float | None = None,
        initial: float = -2.0,
        gradient_scale: float | None = None,
        **settings: Any,
    ) -> None:
        """`maximum_temperature` clamps below minimum + span; `initial` is the first g."""
        for name in ("temperature", "teacher_temperature", "student_temperature"):
            if name in settings:
                raise ConfigError(f"{name} is given, but this energy learns its own: leave it out")
        super().__init__(**settings)
        if not (minimum_temperature > 0 and temperature_span >= 0):
            raise ConfigError(
                f"temperatures from {minimum_temperature} with span {temperature_span}: "
                f"give a minimum above 0 and a span of 0 or more"
            )
        self.minimum, self.span = minimum_temperature, temperature_span
        highest = minimum_temperature + temperature_span
        self.maximum = highest if maximum_temperature is None else min(highest, maximum_temperature)
        self.fixed_scale = gradient_scale
        self.gradient_scale: Tensor
        # A buffer, so that a resumed run goes on where it stopped.
        self.register_buffer("gradient_scale", torch.tensor(gradient_scale or 0.0))
        self.build(initial)

    def build(self, initial: float) -> None:
        """Makes the parameters."""
        self.raw = nn.Parameter(torch.tensor(initial))

    def raw_numbers(self, targets: TeacherTargets) -> Tensor:
        """g of each token, `[N]`."""
        return self.raw.expand(targets.num_tokens)

    def needs(self, targets: TeacherTargets) -> Needs:
        """The tail at the learned temperature. Raises MismatchError unless the cache reaches all it can become."""
        require_inside(targets.temperatures, self.minimum)
        require_inside(targets.temperatures, self.maximum)
        raw = self.raw_numbers(targets)
        # The value of raw, with its gradient scaled.
        raw = raw.detach() + self.gradient_scale * (raw - raw.detach())
        temperature = self.minimum + self.span * torch.sigmoid(raw)
        return Needs(learned={self: temperature.clamp(max=self.maximum)})

    def temperatures(self, statistics: StudentStatistics) -> tuple[Temperature, Temperature]:
        temperature = statistics.needs.learned[self]
        return temperature, temperature

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        return kl(partition.log_teacher, partition.log_student)

    def advance(self, progress: float) -> None:
        if self.fixed_scale is None:
            self.gradient_scale.fill_(-0.5 * (1.0 - math.cos(math.pi * progress)))


class CurriculumTemperatureNetwork(CurriculumTemperature):
    """The same with a temperature per token, from a small network on the teacher's largest probabilities, entropy and
    margin.

    Differs from the source: the paper's code feeds the full logits of both models to its network, which a cache of
    kept entries does not hold.
    """

    def build(self, initial: float) -> None:
        last = nn.Linear(32, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, initial)
        self.network = nn.Sequential(nn.Linear(NUM_TOP + 2, 32), nn.ReLU(), last)

    def raw_numbers(self, targets: TeacherTargets) -> Tensor:
        probabilities = targets.log_probabilities()[:, :NUM_TOP].exp()
        padded = nn.functional.pad(probabilities, (0, NUM_TOP - probabilities.shape[1]))
        inputs = torch.cat([padded, targets.entropy().unsqueeze(1), targets.margin().unsqueeze(1)], dim=1)
        return self.network(inputs.float()).squeeze(1)

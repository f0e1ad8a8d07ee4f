"""What every energy is: a module from (StudentStatistics, TeacherTargets) to one number per token."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from betakd_stages.energies.partition import Partition, make_partition
from betakd_stages.errors import ConfigError
from betakd_stages.statistics import Needs, StudentStatistics
from betakd_stages.tail import Temperature
from betakd_stages.targets import TeacherTargets


class Energy(nn.Module, ABC):
    """A discrepancy between teacher and student, `[N]`, unreduced, differentiable, zero where they agree.

    A subclass says in `needs` which student statistics it reads and computes `discrepancy`; the options every energy
    has are applied here. State that changes once per optimizer step changes in `advance`, never in `forward`.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        teacher_temperature: float | None = None,
        student_temperature: float | None = None,
        temperature_power: float = 0.0,
        include_teacher_entropy: bool = False,
        confidence_gate: float = 0.0,
    ) -> None:
        """`temperature` serves both sides unless one of them has its own.

        `temperature_power` multiplies by that power of the temperature (the geometric mean of the two); 2 is the
        customary factor, and would move a learned weight. `include_teacher_entropy` gives the expected energy under
        the teacher, E[l(onehot y, student)] with y drawn from the teacher. `confidence_gate` is the power of the
        factor (p1 - p2)^power, p1 and p2 the teacher's two largest probabilities at temperature 1; 0 is no gate.
        """
        super().__init__()
        own = {"teacher_temperature": teacher_temperature, "student_temperature": student_temperature}
        self.teacher_temperature, self.student_temperature = (
            _positive("temperature", temperature) if value is None else _positive(name, value)
            for name, value in own.items()
        )
        self.temperature_power = temperature_power
        self.include_teacher_entropy = include_teacher_entropy
        if confidence_gate < 0:
            raise ConfigError(f"confidence_gate is {confidence_gate}: give a power of 0 (no gate) or more")
        self.confidence_gate = confidence_gate

    def needs(self, targets: TeacherTargets) -> Needs:
        """The student statistics this energy reads at these tokens."""
        return Needs(temperatures=(self.student_temperature,))

    @abstractmethod
    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """The energy `[N]` before the options."""

    def expected(self, discrepancy: Tensor, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """The expected energy under the teacher `[N]`: for divergences, the discrepancy plus the teacher's entropy."""
        return discrepancy + targets.entropy(self.temperatures(statistics)[0]).to(discrepancy.dtype)

    def temperatures(self, statistics: StudentStatistics) -> tuple[Temperature, Temperature]:
        """The teacher's and the student's temperature."""
        return self.teacher_temperature, self.student_temperature

    def partition(self, statistics: StudentStatistics, targets: TeacherTargets) -> Partition:
        """Both sides at this energy's temperatures."""
        return make_partition(statistics, targets, *self.temperatures(statistics))

    def forward(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """The energy of each token, `[N]`."""
        energy = self.discrepancy(statistics, targets)
        if self.include_teacher_entropy:
            energy = self.expected(energy, statistics, targets)
        if self.temperature_power:
            teacher_temperature, student_temperature = self.temperatures(statistics)
            energy = energy * (teacher_temperature * student_temperature) ** (self.temperature_power / 2)
        if self.confidence_gate:
            energy = energy * targets.margin().to(energy.dtype).clamp(min=0.0) ** self.confidence_gate
        return energy

    def advance(self, progress: float) -> None:
        """Called once after each optimizer step with the fraction of the run that is done, 0 to 1."""


def fraction(name: str, value: float) -> float:
    """The value as a float. Raises ConfigError unless it lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}: give a number from 0 to 1")
    return float(value)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ConfigError(f"{name} is {value}: give a number above 0")
    return float(value)

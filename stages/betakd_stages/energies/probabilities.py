"""Distances between probability vectors. The tail's share needs only the student's tail sum of q^2."""

from typing import Any

import torch
from torch import Tensor

from betakd_stages.energies.base import Energy
from betakd_stages.energies.partition import log_tail_concentration
from betakd_stages.statistics import Needs, StudentStatistics
from betakd_stages.targets import TeacherTargets


class ProbabilityEnergy(Energy):
    """An energy of probability vectors, the teacher's tail taking the student's shape."""

    def needs(self, targets: TeacherTargets) -> Needs:
        return Needs(temperatures=(self.student_temperature, self.student_temperature / 2))

    def vectors(self, statistics: StudentStatistics, targets: TeacherTargets) -> tuple[Tensor, Tensor]:
        """Teacher and student as vectors `[N, K + 1]` whose inner products are those of the probability vectors.

        The tail (rho q / sigma against q) spans one dimension: the last entry is the mass times the length of the
        tail's normalised shape.
        """
        partition = self.partition(statistics, targets)
        half = 0.5 * log_tail_concentration(statistics, self.student_temperature).unsqueeze(1)
        scale = torch.cat([torch.zeros_like(partition.log_student[:, :-1]), half], dim=1)
        return (partition.log_teacher + scale).exp(), (partition.log_student + scale).exp()


class CosineOfProbabilities(ProbabilityEnergy):
    """1 - cos(p, q), as half the squared distance of the unit vectors, which is never negative."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        teacher, student = self.vectors(statistics, targets)
        return 0.5 * (_unit(teacher) - _unit(student)).square().sum(dim=1)

    def expected(self, discrepancy: Tensor, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """1 - |p| cos(p, q)."""
        length = self.vectors(statistics, targets)[0].norm(dim=1)
        return 1.0 - length * (1.0 - discrepancy)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


class SquaredErrorOfProbabilities(ProbabilityEnergy):
    """The sum of (p - q)^2, or their mean over the vocabulary."""

    def __init__(self, *, mean_over_vocabulary: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.mean_over_vocabulary = mean_over_vocabulary

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        teacher, student = self.vectors(statistics, targets)
        return (teacher - student).square().sum(dim=1) / self._divisor(targets)

    def expected(self, discrepancy: Tensor, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """Plus 1 - |p|^2."""
        teacher = self.vectors(statistics, targets)[0]
        return discrepancy + (1.0 - teacher.square().sum(dim=1)) / self._divisor(targets)

    def _divisor(self, targets: TeacherTargets) -> int:
        return targets.vocabulary_size if self.mean_over_vocabulary else 1

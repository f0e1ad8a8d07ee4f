"""Distances between logits, standardised per token by mean and deviation over the vocabulary, or raw."""

from typing import Any

import torch
from torch import Tensor

from betakd_stages.energies.base import Energy
from betakd_stages.errors import MismatchError
from betakd_stages.statistics import Needs, StudentStatistics
from betakd_stages.targets import TeacherTargets


class LogitEnergy(Energy):
    """An energy of logits at the kept entries only: exact where everything is kept.

    `as_published` standardises by the unbiased deviation plus 1e-8, as the paper's code does.
    """

    def __init__(self, *, standardise: bool = True, as_published: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.standardise, self.as_published = standardise, as_published

    def needs(self, targets: TeacherTargets) -> Needs:
        return Needs(moments=self.standardise)

    def logits(self, statistics: StudentStatistics, targets: TeacherTargets) -> tuple[Tensor, Tensor]:
        """Teacher's and student's logits `[N, K]`, 0 at padding: standardised, which cancels the temperature, or over
        their temperatures.

        Raises MismatchError where the cache lacks the teacher's moments.
        """
        if targets.logit_max is None or targets.logit_mean is None or targets.logit_std is None:
            raise MismatchError(
                "this energy needs the largest logit, mean and deviation of the teacher's logits, which the cache does "
                "not hold: cache the teacher again with logit moments, or choose an energy of probabilities"
            )
        dtype = statistics.kept_logits.dtype
        teacher = targets.logits.masked_fill(~targets.kept, 0.0) + targets.logit_max.unsqueeze(1)
        student = statistics.kept_logits
        if self.standardise:
            assert statistics.logit_mean is not None
            assert statistics.logit_variance is not None
            size = targets.vocabulary_size
            # A small floor keeps the gradient of the root finite for constant logits.
            deviation = statistics.logit_variance.clamp(min=1e-16).sqrt()
            teacher = self._standard(teacher, targets.logit_mean, targets.logit_std, size)
            student = self._standard(student, statistics.logit_mean, deviation, size)
        else:
            teacher, student = teacher / self.teacher_temperature, student / self.student_temperature
        return teacher.to(dtype).masked_fill(~targets.kept, 0.0), student.masked_fill(~targets.kept, 0.0)

    def _standard(self, logits: Tensor, mean: Tensor, deviation: Tensor, size: int) -> Tensor:
        if self.as_published:
            deviation = deviation * (size / (size - 1)) ** 0.5 + 1e-8
        return (logits - mean.unsqueeze(1)) / deviation.clamp(min=1e-8).unsqueeze(1)


class MeanSquaredErrorOfLogits(LogitEnergy):
    """Mean over the kept entries of the squared difference."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        teacher, student = self.logits(statistics, targets)
        return (teacher - student).square().sum(dim=1) / targets.kept.sum(dim=1)


class CosineOfLogits(LogitEnergy):
    """1 - cos over the kept entries, as half the squared distance of the unit vectors."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        units = [torch.nn.functional.normalize(side, dim=1) for side in self.logits(statistics, targets)]
        return 0.5 * (units[0] - units[1]).square().sum(dim=1)

"""Kullback-Leibler divergences and their relatives, on the partition."""

from typing import Any

import torch
from torch import Tensor

from betakd_stages.energies.base import Energy, fraction
from betakd_stages.energies.partition import Partition, kl, log_mixture
from betakd_stages.statistics import StudentStatistics
from betakd_stages.targets import TeacherTargets


class ForwardKL(Energy):
    """KL(teacher, student). Its gradient is exact at the kept tokens."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        return kl(partition.log_teacher, partition.log_student)


class ReverseKL(Energy):
    """KL(student, teacher)."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        return kl(partition.log_student, partition.log_teacher)


class SkewForwardKL(Energy):
    """KL(teacher, skew teacher + (1 - skew) student). Source: DistiLLM."""

    def __init__(self, *, skew: float = 0.1, **settings: Any) -> None:
        super().__init__(**settings)
        self.skew = fraction("skew", skew)

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        return kl(partition.log_teacher, log_mixture(partition.log_teacher, partition.log_student, self.skew))


class SkewReverseKL(SkewForwardKL):
    """KL(student, (1 - skew) teacher + skew student). Source: DistiLLM."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        return kl(partition.log_student, log_mixture(partition.log_student, partition.log_teacher, self.skew))


class JensenShannon(Energy):
    """w KL(teacher, m) + (1 - w) KL(student, m) with m = w teacher + (1 - w) student."""

    def __init__(self, *, teacher_weight: float = 0.5, **settings: Any) -> None:
        super().__init__(**settings)
        self.teacher_weight = fraction("teacher_weight", teacher_weight)

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        mixture = log_mixture(partition.log_teacher, partition.log_student, self.teacher_weight)
        teacher_part, student_part = kl(partition.log_teacher, mixture), kl(partition.log_student, mixture)
        return self.teacher_weight * teacher_part + (1.0 - self.teacher_weight) * student_part


class TotalVariation(Energy):
    """Half the sum of |teacher - student|."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        return 0.5 * _gaps(self.partition(statistics, targets)).sum(dim=1)


class AdaptiveKL(Energy):
    """Forward and reverse KL, weighted by the gaps |p - q| over the teacher's head and over the rest.

    The head is the smallest set that holds `head_mass` of the teacher's probability, all kept entries where they hold
    less; the weights carry no gradient. Source: Rethinking KL divergence (arXiv 2404.02657).
    `as_published` is what the paper's code does instead: the head's size is counted in sorted order but its mask laid
    over the last ids of the vocabulary, the forward part is a cross-entropy, and the weights carry a gradient.
    """

    def __init__(self, *, head_mass: float = 0.5, as_published: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.head_mass = fraction("head_mass", head_mass)
        self.as_published = as_published

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        forward = kl(partition.log_teacher, partition.log_student)
        reverse = kl(partition.log_student, partition.log_teacher)
        gaps = _gaps(partition)
        if self.as_published:
            forward = self.expected(forward, statistics, targets)
        else:
            gaps = gaps.detach()
        probabilities = partition.log_teacher[:, :-1].exp()
        mass_before = probabilities.cumsum(dim=1) - probabilities
        if self.as_published:
            num_head = ((mass_before <= 1.0 - self.head_mass) & targets.kept).sum(dim=1, keepdim=True)
            head = targets.ids >= targets.vocabulary_size - num_head
        else:
            head = mass_before < self.head_mass
        total = gaps.sum(dim=1).clamp(min=torch.finfo(gaps.dtype).tiny)
        head_share = (gaps[:, :-1] * (head & targets.kept)).sum(dim=1) / total
        return head_share * forward + (1.0 - head_share) * reverse


def _gaps(partition: Partition) -> Tensor:
    """|p - q| of each outcome, `[N, K + 1]`."""
    return (partition.log_teacher.exp() - partition.log_student.exp()).abs()

"""Kullback-Leibler divergences and their relatives, on the partition."""

from torch import Tensor

from betakd_stages.energies.base import Energy
from betakd_stages.energies.partition import kl
from betakd_stages.statistics import StudentStatistics
from betakd_stages.targets import TeacherTargets


class ForwardKL(Energy):
    """KL(teacher, student). Its gradient is exact at the kept tokens."""

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        return kl(partition.log_teacher, partition.log_student)

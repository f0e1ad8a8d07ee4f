"""The alpha-beta divergence, which joins forward KL (1, 0), reverse KL (0, 1) and what lies between (ABKD)."""

from typing import Any

import torch
from torch import Tensor

from betakd_stages.energies.base import Energy
from betakd_stages.energies.partition import LOG_ZERO
from betakd_stages.errors import ConfigError
from betakd_stages.statistics import Needs, StudentStatistics
from betakd_stages.targets import TeacherTargets


class AlphaBeta(Energy):
    """-1/(ab) times the sum of p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b), with its limits where a, b or a+b is 0.

    The tail, p = r q, is a function of r times the student's tail sum of q^(a+b), which one more temperature gives.
    """

    def __init__(self, *, alpha: float = 0.2, beta: float = 0.7, **settings: Any) -> None:
        super().__init__(**settings)
        if alpha + beta < 0:
            raise ConfigError(f"alpha + beta is {alpha + beta}: give a sum of 0 or more, or the tail diverges")
        self.alpha, self.beta = float(alpha), float(beta)
        # 0.1 + 0.2 - 0.3 is not 0 in floating point.
        self.power = 0.0 if abs(alpha + beta) < 1e-9 else float(alpha + beta)

    def needs(self, targets: TeacherTargets) -> Needs:
        if self.power == 0:
            return Needs(temperatures=(self.student_temperature,))
        return Needs(temperatures=(self.student_temperature, self.student_temperature / self.power))

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        log_p, log_q = partition.log_teacher, partition.log_student
        # Outcomes that do not exist are log 0 on both sides; 0 on both sides gives the same term, 0, for any power.
        absent = (log_p == LOG_ZERO) & (log_q == LOG_ZERO)
        log_p, log_q = log_p.masked_fill(absent, 0.0), log_q.masked_fill(absent, 0.0)
        kept = self._terms(log_p[:, :-1] - log_q[:, :-1], self.power * log_q[:, :-1]).sum(dim=1)
        tail = self._terms(log_p[:, -1] - log_q[:, -1], self._log_tail_sum(statistics, targets))
        return kept + tail.masked_fill(absent[:, -1], 0.0)

    def _log_tail_sum(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """Log of the student's tail sum of q^(a+b), `[N]`, 0 where the tail is empty."""
        temperature = self.student_temperature
        if self.power == 0:
            count = targets.vocabulary_size - targets.kept.sum(dim=1)
            return count.clamp(min=1).to(statistics.tail_lse.dtype).log()
        log_sum = statistics.tail_lse_at(temperature / self.power) - self.power * statistics.log_partition(temperature)
        return log_sum.masked_fill(torch.isneginf(log_sum), 0.0)

    def _terms(self, log_ratio: Tensor, log_weight: Tensor) -> Tensor:
        """q^(a+b) times the function of p / q, from log(p / q) and log q^(a+b)."""
        a, b = self.alpha, self.beta
        weight = log_weight.exp()
        if a == 0 and b == 0:
            return 0.5 * weight * log_ratio.square()
        if self.power == 0:
            return weight * (torch.expm1(a * log_ratio) - a * log_ratio) / a**2
        if b == 0:
            powered = (log_weight + a * log_ratio).exp()
            return (powered * (a * log_ratio - 1.0) + weight) / a**2
        if a == 0:
            powered = (log_weight + b * log_ratio).exp()
            return (powered - weight * (1.0 + b * log_ratio)) / b**2
        mixed = (log_weight + a * log_ratio).exp()
        teacher = (log_weight + self.power * log_ratio).exp()
        return -(mixed - a / self.power * teacher - b / self.power * weight) / (a * b)

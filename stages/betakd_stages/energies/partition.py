"""Teacher and student as two distributions over the kept tokens plus one outcome, "any other token".

Every f-divergence on these K + 1 outcomes is a true divergence, never negative and a lower bound of the full one. It
is what the full divergence would be if the teacher's tail had the student's shape.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from betakd_stages.statistics import StudentStatistics
from betakd_stages.tail import Temperature
from betakd_stages.targets import TeacherTargets

LOG_ZERO = -1e4
"""Stands for log 0 on both sides, at padding and in an empty tail: its exponential is 0 and every difference finite."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Log-probabilities over K + 1 outcomes, the last of them the tail; both sides sum to one."""

    log_teacher: Tensor
    """`[N, K + 1]`, without gradient unless the temperature is learned."""
    log_student: Tensor
    """`[N, K + 1]`."""


def make_partition(
    statistics: StudentStatistics,
    targets: TeacherTargets,
    teacher_temperature: Temperature,
    student_temperature: Temperature,
) -> Partition:
    """The partition of N tokens, in the student's dtype."""
    log_student = _outcomes(
        statistics.log_probabilities(student_temperature), statistics.tail_log_probability(student_temperature)
    )
    log_teacher = _outcomes(
        targets.log_probabilities(teacher_temperature), targets.tail_log_probability(teacher_temperature)
    )
    return Partition(log_teacher.to(log_student.dtype), log_student)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p, q), `[N]`, of log-probabilities `[N, K + 1]` that sum to one; never negative, also when rounded.

    It is the sum of p (e^d - 1 - d) with d = log q - log p, which near equality has far smaller errors than
    the sum of -p d. Where q is much larger than p, e^d could overflow and the same term is q - p - p d.
    """
    p, q, difference = log_p.exp(), log_q.exp(), log_q - log_p
    near = difference.clamp(max=1.0)
    terms = torch.where(difference < 1.0, p * (torch.expm1(near) - near), q - p - p * difference)
    return terms.sum(dim=1)


def log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """Log of weight p + (1 - weight) q."""
    weights = torch.tensor([weight, 1.0 - weight], dtype=torch.float64).log().tolist()
    return torch.logaddexp(log_p + weights[0], log_q + weights[1])


def log_tail_concentration(statistics: StudentStatistics, temperature: float) -> Tensor:
    """Log of (tail sum of q^2) / (tail sum of q)^2, `[N]`; `LOG_ZERO` where the tail is empty.

    The statistics must hold the tail at `temperature` and at half of it.
    """
    tail = statistics.tail_lse_at(temperature)
    return (statistics.tail_lse_at(temperature / 2) - 2 * tail).masked_fill(torch.isneginf(tail), LOG_ZERO)


def _outcomes(kept: Tensor, tail: Tensor) -> Tensor:
    """Log-probabilities of the K kept entries and the tail, `[N, K + 1]`, with a finite stand-in for log 0."""
    outcomes = torch.cat([kept, tail.unsqueeze(1)], dim=1)
    return outcomes.masked_fill(torch.isneginf(outcomes), LOG_ZERO)

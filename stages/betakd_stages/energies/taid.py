"""TAID: towards a teacher that starts as the student and ends as the teacher (arXiv 2501.16937)."""

from typing import Any

import torch
from torch import Tensor

from betakd_stages.energies.base import Energy, fraction
from betakd_stages.energies.partition import kl
from betakd_stages.processes import sum_over_processes
from betakd_stages.statistics import Needs, StudentStatistics
from betakd_stages.targets import TeacherTargets


class Taid(Energy):
    """KL(softmax((1 - t) student + t teacher logits), student), the student's share without gradient.

    After each step t rises: to the line from `start` to `end` over the run, or by `rate` sigmoid(m) (1 - t) where that
    is more, m being a running mean of the relative fall of the energy.
    Differs from the paper's code: there the step count stays 0.
    """

    def __init__(
        self, *, start: float = 0.4, end: float = 1.0, rate: float = 5e-4, momentum: float = 0.99, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.start, self.end = fraction("start", start), fraction("end", end)
        self.rate, self.momentum = fraction("rate", rate), fraction("momentum", momentum)
        self.t: Tensor
        self.fall: Tensor
        self.previous: Tensor
        self.seen: Tensor
        self.register_buffer("t", torch.tensor(self.start, dtype=torch.float64))
        self.register_buffer("fall", torch.tensor(0.0))
        # NaN until a first step was made: there is no fall before it.
        self.register_buffer("previous", torch.tensor(torch.nan))
        # Sum and number of token energies since the last step, over all batches that were accumulated.
        self.register_buffer("seen", torch.zeros(2))

    def needs(self, targets: TeacherTargets) -> Needs:
        return Needs(temperatures=(self.student_temperature,), tail_means=self.include_teacher_entropy)

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        energy = kl(self._intermediate(statistics, targets), partition.log_student)
        if self.training:
            self.seen[0] += energy.detach().sum()
            self.seen[1] += len(energy)
        return energy

    def expected(self, discrepancy: Tensor, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """The cross-entropy: plus the entropy of the intermediate teacher, whose tail has the student's shape."""
        temperature = self.student_temperature
        log_teacher = self._intermediate(statistics, targets)
        shape_entropy = statistics.tail_lse_at(temperature) - statistics.tail_mean_at(temperature) / temperature
        shape_entropy = shape_entropy.detach().masked_fill(torch.isneginf(statistics.tail_lse_at(temperature)), 0.0)
        probabilities = log_teacher.exp()
        entropy = -(probabilities * log_teacher).sum(dim=1) + probabilities[:, -1] * shape_entropy
        return discrepancy + entropy

    def advance(self, progress: float) -> None:
        """Raises t, after a step in which some process saw energies."""
        sum_over_processes(self.seen)
        if self.seen[1] == 0:
            return
        energy = self.seen[0] / self.seen[1]
        self.seen.zero_()
        if not torch.isnan(self.previous):
            relative_fall = (self.previous - energy) / (self.previous + 1e-15)
            self.fall.mul_(self.momentum).add_((1.0 - self.momentum) * relative_fall)
            line = self.start + (self.end - self.start) * progress
            risen = self.t + self.rate * torch.sigmoid(self.fall) * (1.0 - self.t)
            self.t.copy_(risen.clamp(min=line).clamp(max=self.end))
        self.previous.copy_(energy)

    def _intermediate(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        """Log-probabilities `[N, K + 1]` of the intermediate teacher, without gradient."""
        partition = self.partition(statistics, targets)
        t = self.t.to(partition.log_student.dtype)
        return torch.log_softmax((1.0 - t) * partition.log_student.detach() + t * partition.log_teacher, dim=1)

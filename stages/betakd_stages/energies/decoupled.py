"""DKD: the label against the rest, and the rest among itself, weighted apart (arXiv 2203.08679)."""

from typing import Any

import torch
from torch import Tensor

from betakd_stages.energies.base import Energy
from betakd_stages.energies.partition import LOG_ZERO, kl
from betakd_stages.statistics import StudentStatistics
from betakd_stages.targets import TeacherTargets


class DecoupledKL(Energy):
    """`target_weight` KL of (label, not label) + `rest_weight` KL of the other outcomes, renormalised.

    The label's outcome is the tail where the label is not kept, as when records are shuffled on purpose.
    """

    def __init__(self, *, target_weight: float = 1.0, rest_weight: float = 0.5, **settings: Any) -> None:
        super().__init__(**settings)
        self.target_weight, self.rest_weight = target_weight, rest_weight

    def discrepancy(self, statistics: StudentStatistics, targets: TeacherTargets) -> Tensor:
        partition = self.partition(statistics, targets)
        kept_gold = (targets.ids == targets.gold_ids.unsqueeze(1)) & targets.kept
        gold = torch.cat([kept_gold, ~kept_gold.any(dim=1, keepdim=True)], dim=1)
        sides = [_decouple(side, gold) for side in (partition.log_teacher, partition.log_student)]
        target_part = kl(sides[0][0], sides[1][0])
        rest_part = kl(sides[0][1], sides[1][1])
        return self.target_weight * target_part + self.rest_weight * rest_part


def _decouple(outcomes: Tensor, gold: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[N, 2]` of (label, not label) and `[N, K + 1]` of the others, the label's being log 0."""
    log_gold = outcomes.masked_fill(~gold, 0.0).sum(dim=1)
    others = outcomes.masked_fill(gold, LOG_ZERO)
    log_rest = torch.logsumexp(others, dim=1)
    renormalised = (outcomes - log_rest.unsqueeze(1)).masked_fill(gold, LOG_ZERO)
    return torch.stack([log_gold, log_rest], dim=1), renormalised

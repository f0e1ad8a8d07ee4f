"""The mixture of the teachers' Gibbs priors, -log sum of w_t beta_t^(d/2) exp(-beta_t energy_t)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from betakd_stages.targets import TeacherTargets


@dataclass(frozen=True, slots=True)
class Experts:
    """T teachers of B samples with N tokens that count one by one."""

    targets: tuple[TeacherTargets, ...]
    """Of the same tokens; where a teacher does not hold a sample, anything."""
    held: Tensor
    """bool `[B, T]`."""
    weights: Tensor
    """`[B, T]`, rows sum to 1; 0 where not held."""


def gibbs_mixture(terms: Tensor, owners: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """-log sum_t w_t exp(-(sum of the terms of teacher t)) `[B]`, and each teacher's responsibility `[B, T]` for it.

    `terms` `[B, C]` are those of the channels, beta energy - (d / 2) log beta, `owners` int64 `[C]` the teacher of
    each, `weights` `[B, T]` what the mixture gives to each teacher. The responsibilities are what an energy's gradient
    is multiplied by. One teacher: the sum of its terms. Source: MT-BKD (arXiv 2605.27967), with the prior of Beta-KD.
    """
    # A sample without supervised tokens has no weights; whatever it gets is masked, but must be finite.
    weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, 1.0)
    of_teachers = terms.new_zeros(weights.shape).index_add(1, owners, terms)
    scores = weights.to(terms.dtype).log() - of_teachers
    return -torch.logsumexp(scores, dim=1), scores.detach().softmax(dim=1)

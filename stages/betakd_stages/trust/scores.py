"""From pi, how likely a label came from the teacher, to the trust s, how much the teacher counts.

Three steps. pi comes from two fits, one with a network and one with a number per group; each group takes the one that
predicts its held-out labels better. A group in which that one does not predict them better than the background alone,
surely enough (5 % of random teachers pass), gets s = 0: nothing there shows that the teacher knows more than chance.
Elsewhere pi is taken relative to the best of
its group, because wrong labels, spread evenly, lower pi for a perfect teacher too:
    s = clip((pi / reference - 0.3) / 0.4, 0, 1),  reference = max(0.2, weighted 90 % quantile of pi),
weighted by the teacher's margin, so that samples of which the teacher itself is unsure do not set the standard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from betakd_stages.trust.evidence import Evidence, Floats
from betakd_stages.trust.groups import Groups

LEAST_SURENESS = 1.645
"""Standard errors that the skill has to lie above 0."""
REFERENCE_SHARE = 0.9
LEAST_REFERENCE = 0.2
NO_TRUST, FULL_TRUST = 0.3, 0.7
"""Of pi relative to the reference: s rises from 0 to 1 between these."""


@dataclass(frozen=True, slots=True)
class GroupScore:
    """How the teacher does in a group."""

    skill: float
    """Mean nats per sample that teacher and background predict held-out labels better than the background alone."""
    skill_error: float
    """Its standard error; infinite for one sample."""
    reference: float
    """pi of the best; see the module."""

    @property
    def is_trusted(self) -> bool:
        """Whether the teacher surely shows skill."""
        return self.skill > LEAST_SURENESS * self.skill_error


def skills(pi: Floats, evidence: Evidence) -> NDArray[np.float64]:
    """Nats `[S]` that a sample's label is likelier under the mixture with pi `[S, T]` than under the background."""
    shares = pi.astype(np.float64).clip(1e-9, 1 - 1e-9)
    rest = (1 - shares.sum(axis=1)).clip(1e-9)
    background = evidence.background.astype(np.float64)
    mixture = np.log(rest)[:, None] + background
    for share, teacher in zip(shares.T, np.moveaxis(evidence.teachers.astype(np.float64), 1, 0), strict=True):
        mixture = np.logaddexp(np.log(share)[:, None] + teacher, mixture)
    return (mixture - background).sum(axis=1)


def score_groups(pi: Floats, evidence: Evidence, groups: Groups) -> list[GroupScore]:
    """One score per group, from pi `[S]` of the one teacher."""
    skill, margin = skills(pi[:, None], evidence), evidence.margin[:, 0]
    scores = []
    for number in range(len(groups.names)):
        members = groups.members(number)
        reference = weighted_quantile(pi[members], margin[members], REFERENCE_SHARE)
        error = np.std(skill[members], ddof=1) / len(members) ** 0.5 if len(members) > 1 else np.inf
        scores.append(GroupScore(float(skill[members].mean()), float(error), max(LEAST_REFERENCE, reference)))
    return scores


def better_by_group(candidates: Sequence[Floats], evidence: Evidence, groups: Groups) -> Floats:
    """pi `[S, T]`, in each group that of the candidates `[S, T]` which predicts the group's labels best."""
    by_sample = [skills(pi, evidence) for pi in candidates]
    totals = np.stack([np.bincount(groups.of_sample, of, len(groups.names)) for of in by_sample])
    return np.stack(candidates)[totals.argmax(axis=0)[groups.of_sample], np.arange(len(groups.of_sample))]


def trust_of(pi: Floats, groups: Groups, scores: list[GroupScore]) -> Floats:
    """s `[S]`, 0 to 1, from pi `[S]`."""
    reference = np.array([score.reference for score in scores])[groups.of_sample]
    is_trusted = np.array([score.is_trusted for score in scores])[groups.of_sample]
    relative = (pi / reference - NO_TRUST) / (FULL_TRUST - NO_TRUST)
    return np.where(is_trusted, relative.clip(0, 1), 0).astype(np.float32)


def weighted_quantile(values: Floats, weights: Floats, share: float) -> float:
    """The least value such that values up to it hold this share of the weight; of values alike where none has any."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum((weights if weights.max() > 0 else np.ones_like(weights))[order], dtype=np.float64)
    return float(values[order][np.searchsorted(total, share * total[-1])])

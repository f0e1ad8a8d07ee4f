"""What a person should see of the trust in a teacher: by group, as a histogram, and where teacher and labels clash."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from betakd_stages.trust.evidence import Evidence, Floats
from betakd_stages.trust.groups import Groups
from betakd_stages.trust.scores import GroupScore

NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One question group."""

    group: str
    num_samples: int
    agreement: float
    """Share of the samples whose labels are the teacher's own first choice."""
    pi: float
    """Mean chance that a label came from the teacher and not from the background."""
    skill: float
    """Nats per sample by which teacher and background predict held-out labels better than the background alone."""
    skill_error: float
    """The standard error of that."""
    trust: float
    """Mean of s."""
    is_trusted: bool
    """False where the skill switch is off."""


@dataclass(frozen=True, slots=True)
class Clash:
    """A sample whose label and teacher contradict each other: a label error or a teacher error."""

    sample_id: str
    group: str
    nats: float
    """How far the label lies below the teacher's own answer."""
    trust: float
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class TrustReport:
    """The trust in a teacher, for people."""

    path: str
    num_samples: int
    groups: tuple[GroupRow, ...]
    histogram: dict[str, Any]
    """Edges and counts of s, and its mean."""
    clashes: tuple[Clash, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def group_rows(
    evidence: Evidence, groups: Groups, pi: Floats, trust: Floats, scores: Sequence[GroupScore]
) -> tuple[GroupRow, ...]:
    """One row per group, in the order of the groups."""
    rows = []
    for number, (name, score) in enumerate(zip(groups.names, scores, strict=True)):
        members = groups.members(number)
        rows.append(
            GroupRow(
                group=name,
                num_samples=len(members),
                agreement=float((evidence.gap[members, 0] == 0).mean()),
                pi=float(pi[members].mean()),
                skill=score.skill,
                skill_error=score.skill_error,
                trust=float(trust[members].mean()),
                is_trusted=score.is_trusted,
            )
        )
    return tuple(rows)


def histogram(trust: Floats) -> dict[str, Any]:
    """How many samples lie in each of ten bins of s."""
    counts, edges = np.histogram(trust, NUM_BINS, (0, 1))
    return {"edges": [round(float(edge), 3) for edge in edges], "counts": counts.tolist(), "mean": float(trust.mean())}


def worst_clashes(evidence: Evidence, number: int) -> list[int]:
    """The places of the samples whose labels lie farthest below what the teacher would have said, worst first."""
    worst = np.argsort(-evidence.gap[:, 0], kind="stable")[:number]
    return [int(place) for place in worst if evidence.gap[place, 0] > 0]

"""Every probed sample's weight beside its entropies, moment by moment. Source: paper, figure 6."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.report.records import Run, Runs
from betakd_stages.errors import DataError

MAX_SCATTERS = 4
"""In one figure."""
MAX_KINDS = 6
"""Of samples, each with a mark of its own; beyond that the rarer ones are one kind."""
OTHERS = "other"
NOTE = (
    "Each point is a probed sample, its shape the type of its question where that is known. The weight that the paper "
    "wants falls with the student’s entropy as training goes on; one that is largest at the right of the teacher’s "
    "side trusts the teacher most where it knows least."
)


@dataclass(frozen=True, slots=True)
class Moment:
    """P probed samples after some steps: entropies in nats, weights, and what kind each is, each [P]."""

    step: int
    student_entropy: NDArray[np.float64]
    teacher_entropy: NDArray[np.float64]
    betas: NDArray[np.float64]
    kinds: NDArray[np.str_]
    """The question types; all empty where they are not known."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """One channel of one method, first seed."""

    title: str
    moments: tuple[Moment, ...]

    @property
    def is_logarithmic(self) -> bool:
        """Whether the weights span a decade."""
        betas = np.concatenate([moment.betas for moment in self.moments])
        return bool(betas.min() > 0 and betas.max() > 10 * betas.min())


def sample_kinds(runs: Runs) -> dict[str, str]:
    """The question types of all probed samples by id, as many as can be told apart; none where the data are gone."""
    from betakd_stages.data import load_samples  # imports Pillow

    probed: dict[str, set[str]] = {}
    for of in runs.values():
        if of[0].probe:
            probed.setdefault(of[0].settings["data"], set()).update(of[0].probe[-1]["samples"]["sample_id"])
    kinds: dict[str, str] = {}
    for data, ids in probed.items():
        try:
            kinds |= {sample.sample_id: sample.category for sample in load_samples(data) if sample.sample_id in ids}
        except DataError:
            return {}
    common = [kind for kind, _ in Counter(kinds.values()).most_common()]
    kept = common if len(common) <= MAX_KINDS else common[: MAX_KINDS - 1]
    return {sample_id: kind if kind in kept else OTHERS for sample_id, kind in kinds.items()}


def scatters(runs: Runs, kinds: Mapping[str, str] | None = None) -> list[Scatter]:
    """Those of the methods whose samples have weights of their own, as many as a figure holds; `kinds` by sample id."""
    found = [
        _scatter(method, channel, of[0], kinds or {})
        for method, of in runs.items()
        for channel in of[0].channels
        if of[0].probe and f"beta/{channel}" in of[0].probe[-1]["samples"]
    ]
    return [each for each in found if _differs_between_samples(each.moments)][:MAX_SCATTERS]


def _scatter(method: str, channel: str, run: Run, kinds: Mapping[str, str]) -> Scatter:
    moments = tuple(_moment(row["step"], row["samples"], channel, kinds) for row in run.probe)
    return Scatter(f"{method}: {channel}", moments)


def _moment(step: int, samples: Mapping[str, Sequence[Any]], channel: str, kinds: Mapping[str, str]) -> Moment:
    names = ("student_entropy", "teacher_entropy", f"beta/{channel}")
    student, teacher, betas = (np.array(samples[name], dtype=np.float64) for name in names)
    known = np.isfinite(student) & np.isfinite(teacher) & np.isfinite(betas)
    own_kinds = np.array([kinds.get(sample_id, "") for sample_id in samples["sample_id"]])
    return Moment(step, student[known], teacher[known], betas[known], own_kinds[known])


def _differs_between_samples(moments: Sequence[Moment]) -> bool:
    return any(len(each.betas) > 1 and np.ptp(each.betas) > 1e-6 * np.abs(each.betas).max() for each in moments)

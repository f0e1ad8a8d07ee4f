"""Every probed sample's weight beside its entropies, moment by moment. Source: paper, figure 6."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.report.records import Run, Runs

MAX_SCATTERS = 4
"""In one figure."""
NOTE = (
    "Each point is a probed sample. The weight that the paper wants falls with the student’s entropy as training goes "
    "on; one that is largest at the right of the teacher’s side trusts the teacher most where it knows least."
)


@dataclass(frozen=True, slots=True)
class Moment:
    """P probed samples after some steps: entropies in nats and weights, each [P]."""

    step: int
    student_entropy: NDArray[np.float64]
    teacher_entropy: NDArray[np.float64]
    betas: NDArray[np.float64]


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


def scatters(runs: Runs) -> list[Scatter]:
    """Those of the methods whose samples have weights of their own, as many as a figure holds."""
    found = [
        _scatter(method, channel, of[0])
        for method, of in runs.items()
        for channel in of[0].channels
        if of[0].probe and f"beta/{channel}" in of[0].probe[-1]["samples"]
    ]
    return [each for each in found if _differs_between_samples(each.moments)][:MAX_SCATTERS]


def _scatter(method: str, channel: str, run: Run) -> Scatter:
    return Scatter(f"{method}: {channel}", tuple(_moment(row["step"], row["samples"], channel) for row in run.probe))


def _moment(step: int, samples: dict[str, Sequence[float | None]], channel: str) -> Moment:
    names = ("student_entropy", "teacher_entropy", f"beta/{channel}")
    student, teacher, betas = (np.array(samples[name], dtype=np.float64) for name in names)
    known = np.isfinite(student) & np.isfinite(teacher) & np.isfinite(betas)
    return Moment(step, student[known], teacher[known], betas[known])


def _differs_between_samples(moments: Sequence[Moment]) -> bool:
    return any(len(each.betas) > 1 and np.ptp(each.betas) > 1e-6 * np.abs(each.betas).max() for each in moments)

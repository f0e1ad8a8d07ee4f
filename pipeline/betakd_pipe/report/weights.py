"""What beta did: where each weight began and ended, and whether it follows the teacher's or the student's entropy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.report.records import Run, Runs
from betakd_pipe.report.tables import MISSING, Cell, Line, Table, signed, summary_cell

GROWTH, CORRELATION = 2.0, 0.1
"""A weight has collapsed where it grew by more than this factor and its log correlates with the teacher's entropy by
more than this: the rule by which a run warns."""
ALIKE = 1e-6
TABLE_NOTE = (
    "β at the first and the last point of the log, mean over samples; 80 % of the samples have a β in the range. "
    "Correlations are over samples, of log β: with the teacher’s entropy in the last steps, with the student’s over "
    "the probed samples at the end. Positive with the teacher’s entropy while β grows is the sign of a collapse: the "
    "largest weights where the teacher knows least."
)


@dataclass(frozen=True, slots=True)
class WeightStory:
    """One channel of one method, means over seeds; None where a figure is undefined."""

    method: str
    channel: str
    first: float
    last: float
    low: float
    high: float
    with_teacher_entropy: float | None
    with_student_entropy: float | None

    @property
    def is_constant(self) -> bool:
        """Whether nothing was learned: one number from the first step to the last."""
        return not self.is_per_sample and abs(self.last - self.first) <= ALIKE * abs(self.first)

    @property
    def is_per_sample(self) -> bool:
        """Whether samples have weights of their own."""
        # A range alone may also be that of one weight over the steps since the point before.
        return self.with_teacher_entropy is not None or self.with_student_entropy is not None

    @property
    def has_collapsed(self) -> bool:
        """Whether it grew where the teacher knows least."""
        correlation = self.with_teacher_entropy
        return correlation is not None and self.last > GROWTH * self.first and correlation > CORRELATION


def weight_stories(runs: Runs) -> list[WeightStory]:
    """The stories of all methods with weights, in order."""
    return [
        _story(method, channel, of)
        for method, of in runs.items()
        for channel in of[0].channels
        if all(f"beta/{channel}" in row for run in of for row in (run.metrics[0], run.metrics[-1]))
    ]


def _story(method: str, channel: str, runs: Sequence[Run]) -> WeightStory:
    name = f"beta/{channel}"
    firsts, lasts = ([run.metrics[place] for run in runs] for place in (0, -1))
    correlations = [row.get(f"entropy_correlation/{channel}") for row in lasts]
    probed = [probed_correlation(run, channel, "student_entropy") for run in runs]
    return WeightStory(
        method=method,
        channel=channel,
        first=_mean([row[name] for row in firsts]),
        last=_mean([row[name] for row in lasts]),
        low=_mean([row.get(f"{name}/q10", row[name]) for row in lasts]),
        high=_mean([row.get(f"{name}/q90", row[name]) for row in lasts]),
        with_teacher_entropy=_mean_of_known(correlations),
        with_student_entropy=_mean_of_known(probed),
    )


def weight_table(runs: Runs, stories: Sequence[WeightStory]) -> Table | None:
    """One line per method and channel; None where no method has a weight."""
    lines = []
    for story in stories:
        of = runs[story.method]
        betas = [summary_cell([run.metrics[place][f"beta/{story.channel}"] for run in of], 3) for place in (0, -1)]
        kind = "given" if story.is_constant else "per sample" if story.is_per_sample else "per channel"
        cells = (
            Cell(story.channel),
            Cell(kind),
            *betas,
            Cell(f"{story.low:.3g} to {story.high:.3g}", story.low) if story.is_per_sample else Cell(MISSING),
            _correlation_cell(story.with_teacher_entropy),
            _correlation_cell(story.with_student_entropy),
            Cell(MISSING if story.with_teacher_entropy is None else "yes" if story.has_collapsed else "no"),
        )
        lines.append(Line(story.method, cells))
    headings = (
        *("method", "channel", "weights", "β first", "β last", "range at the end"),
        *("correlation, teacher’s entropy", "correlation, student’s entropy", "collapse"),
    )
    return Table("weights", headings, tuple(lines), TABLE_NOTE) if lines else None


def probed_correlation(run: Run, channel: str, entropy: str) -> float | None:
    """Of log beta with an entropy over the probed samples after the last step; None where one of them is constant."""
    if not run.probe:
        return None
    samples = run.probe[-1]["samples"]
    if f"beta/{channel}" not in samples:
        return None
    betas, entropies = (np.array(samples[name], dtype=np.float64) for name in (f"beta/{channel}", entropy))
    known = np.isfinite(betas) & np.isfinite(entropies) & (betas > 0)
    return _correlation(np.log(betas[known]), entropies[known])


def _correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float | None:
    if len(left) < 3 or min(np.ptp(left), np.ptp(right)) < ALIKE:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _correlation_cell(value: float | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(signed(value, 2), value)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None

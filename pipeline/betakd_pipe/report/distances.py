"""How far the students' logits are from the teacher's, early and late, on the entries that the cache kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.report.records import Run, Runs
from betakd_pipe.report.tables import Line, Table, mark_best, summary_cell

LOG_PROBABILITIES = "log_probabilities"
TABLE_NOTE = (
    "Over the probed samples, in nats, of log-probabilities: logits less their logsumexp, because the logits of two "
    "models may differ by a constant that means nothing. The difference is the student’s mean minus the teacher’s "
    "(the matching distance of the paper’s figure 5 is its size); Wasserstein-1 compares whole distributions. Early is "
    "after the first tenth of the steps."
)


@dataclass(frozen=True, slots=True)
class Distributions:
    """Shares of log-probabilities per bin, of the teacher and of each method, at a moment; edges [E], shares [E-1]."""

    moment: str
    edges: NDArray[np.float64]
    teacher: NDArray[np.float64]
    students: Mapping[str, NDArray[np.float64]]


def early_and_late(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The rows of the probe after the first tenth of the steps and after the last; None without a teacher's."""
    compared = [row for row in run.probe if LOG_PROBABILITIES in row and row["step"] > 0]
    return (compared[0], compared[-1]) if compared else None


def distance_table(runs: Runs) -> Table | None:
    """One line per method whose runs were probed; None where none was."""
    lines = []
    for method, of in runs.items():
        moments = [pair for run in of if (pair := early_and_late(run)) is not None]
        if not moments:
            continue
        found = [[row[LOG_PROBABILITIES] for row in pair] for pair in moments]
        differences = [summary_cell([_difference(pair[place]) for pair in found], 3) for place in (0, 1)]
        distances = [summary_cell([pair[place]["wasserstein_1"] for pair in found], 3) for place in (0, 1)]
        lines.append(Line(method, (*differences, *distances)))
    headings = ("method", "difference, early", "difference, late", "Wasserstein-1, early", "Wasserstein-1, late")
    marked = mark_best(lines, ["", "", "lower", "lower"])
    return Table("distances", headings, marked, TABLE_NOTE) if lines else None


def _difference(row: Mapping[str, Any]) -> float | None:
    """Of the means; None where the student's are not finite."""
    from betakd_stages.matching_distance import MatchingDistance

    means = (row["teacher_mean"], row["student_mean"], row["wasserstein_1"])
    return None if None in means else MatchingDistance(*means).difference_of_means


def distributions(runs: Runs) -> list[Distributions]:
    """Those of the methods early and late, all seeds together; none where no run was probed."""
    found = []
    for place, moment in enumerate(("early", "late")):
        rows = {
            method: [pair[place][LOG_PROBABILITIES] for run in of if (pair := early_and_late(run)) is not None]
            for method, of in runs.items()
        }
        known = {method: of for method, of in rows.items() if of}
        if known:
            everyone = next(iter(known.values()))
            found.append(
                Distributions(
                    moment,
                    edges=np.array(everyone[0]["bin_edges"]),
                    teacher=_shares(everyone, "teacher_counts"),
                    students={method: _shares(of, "student_counts") for method, of in known.items()},
                )
            )
    return found


def _shares(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    counts = np.sum([row[name] for row in rows], axis=0, dtype=np.float64)
    return np.asarray(counts / counts.sum())

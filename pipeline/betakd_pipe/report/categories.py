"""Accuracy by question type, and by how sure the teacher is of the question."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.report.records import TEACHER, Records, ReportScenario, Runs, read_predictions, teacher_evaluations
from betakd_pipe.report.tables import Line, Table, summary_cell

QUARTERS = ("least sure", "second", "third", "surest")
BY_CONFIDENCE_NOTE = (
    "Test accuracy in percent. The questions of each seed are parted at the quartiles of the probability that the "
    "teacher gives to its own answer; questions of which it is equally sure stay together."
)
BY_ENTROPY_NOTE = (
    "The teacher was not evaluated on the test questions, so this is the cross-entropy on the training labels, in "
    "nats, over the last steps, by quartiles of the entropy of the teacher’s cached answers."
)


@dataclass(frozen=True, slots=True)
class CategoryBars:
    """Accuracies in percent by question type: mean and standard deviation over seeds of each method."""

    categories: tuple[str, ...]
    means: Mapping[str, Sequence[float]]
    deviations: Mapping[str, Sequence[float]]
    teacher: Sequence[float] | None


def category_bars(runs: Runs, teacher: Sequence[Mapping[str, Any]]) -> CategoryBars | None:
    """The accuracies by question type, the teacher's from its scores; None where there are fewer than two types."""
    rows = {method: [run.row.accuracy_by_category for run in of] for method, of in runs.items()}
    categories = tuple(next(iter(rows.values()))[0])
    if len(categories) < 2:
        return None
    taught = [scores["accuracy_by_category"] for scores in teacher]
    return CategoryBars(
        categories,
        means={method: _means(of, categories) for method, of in rows.items()},
        deviations={
            method: [statistics.stdev([row[name] for row in of]) if len(of) > 1 else 0.0 for name in categories]
            for method, of in rows.items()
        },
        teacher=_means(taught, categories) if taught else None,
    )


def _means(rows: Sequence[Mapping[str, float]], categories: Sequence[str]) -> list[float]:
    return [statistics.fmean([row[name] for row in rows]) for name in categories]


def quartile_table(scenario: ReportScenario, runs: Runs) -> Table | None:
    """One line per method, one column per quarter; None where nothing is known of the teacher's certainty."""
    evaluations = {seed: read_predictions(folder) for seed, folder in teacher_evaluations(scenario).items()}
    quarters = {seed: _quarters(answers) for seed, answers in evaluations.items()}
    headings = ("method", *(f"teacher {name}" for name in QUARTERS))
    lines = []
    for method, of in runs.items():
        known = [run.predictions for run in of if _same_questions(run.predictions, evaluations.get(run.row.seed))]
        parts = [quarters[run.row.seed] for run in of if run.predictions in known]
        if known:
            by_seed = [_accuracies(answers, quarter) for answers, quarter in zip(known, parts, strict=True)]
            lines.append(Line(method, tuple(summary_cell(column, 1) for column in zip(*by_seed, strict=True))))
    if lines:
        taught = [_accuracies(answers, quarters[seed]) for seed, answers in evaluations.items()]
        own = Line(TEACHER, tuple(summary_cell(column, 1) for column in zip(*taught, strict=True)))
        return Table("quartiles", headings, (own, *lines), BY_CONFIDENCE_NOTE)
    return _by_entropy(runs, headings)


def _by_entropy(runs: Runs, headings: tuple[str, ...]) -> Table | None:
    """The training's own figures, from the quarter with the largest entropy to that with the smallest."""
    names = [f"cross_entropy/quartile{number}" for number in (4, 3, 2, 1)]
    lines = [
        Line(method, tuple(summary_cell([run.metrics[-1].get(name) for run in of], 3) for name in names))
        for method, of in runs.items()
        if any(name in run.metrics[-1] for run in of for name in names)
    ]
    return Table("quartiles", headings, tuple(lines), BY_ENTROPY_NOTE) if lines else None


def _same_questions(answers: Records, reference: Records | None) -> bool:
    return reference is not None and [one["sample_id"] for one in answers] == [one["sample_id"] for one in reference]


def _quarters(answers: Records) -> NDArray[np.int64]:
    """The quarter of every question `[Q]`, 0 where the teacher is least sure."""
    confidence = np.array([answer["confidence"] for answer in answers], dtype=np.float64)
    return np.searchsorted(np.quantile(confidence, [0.25, 0.5, 0.75]), confidence, side="left").astype(np.int64)


def _accuracies(answers: Records, quarters: NDArray[np.int64]) -> list[float | None]:
    """In percent by quarter; None where no question is in it."""
    right = np.array([answer["correct"] for answer in answers], dtype=np.float64)
    members = [right[quarters == quarter] for quarter in range(len(QUARTERS))]
    return [100 * float(each.mean()) if len(each) else None for each in members]

"""The tables of the report as text and sorting keys: methods over seeds, every run, configurations side by side."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.table import mean_and_deviation
from betakd_pipe.report.records import TEACHER, ReportScenario, rows_by_method, teacher_scores

MISSING = "–"
STRIP_STEP = 5
"""The strip's ends are multiples of this many percent."""


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a run; `better` says which mean is marked as the best."""

    title: str
    unit: str
    digits: int
    better: Literal["higher", "lower", ""]
    value: Callable[[ResultRow], float | None]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, and what it is sorted by (none: at the end)."""

    text: str
    key: float | None = None
    best: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """One seed's accuracy; `position` in percent of the strip's width."""

    seed: int
    accuracy: float
    position: float


@dataclass(frozen=True, slots=True)
class Line:
    """One method: its cells, and a dot for each seed."""

    method: str
    cells: tuple[Cell, ...]
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class MethodTable:
    """The table of a scenario; the strip of accuracies runs from `strip_start` to `strip_end` percent."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    strip_start: float
    strip_end: float


@dataclass(frozen=True, slots=True)
class PlainTable:
    """Titles and texts."""

    titles: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class CategoryBars:
    """Accuracies in percent by question type: mean and standard deviation over seeds of each method."""

    categories: tuple[str, ...]
    means: Mapping[str, Sequence[float]]
    deviations: Mapping[str, Sequence[float]]
    teacher: Sequence[float] | None


def method_table(scenario: ReportScenario) -> MethodTable:
    """Mean ± sample standard deviation over seeds, one line per method, the teacher's first where it was evaluated."""
    methods = rows_by_method(scenario)
    columns = _columns([row for rows in methods.values() for row in rows])
    cells = {method: [_cell(column, rows) for column in columns] for method, rows in methods.items()}
    for index, column in enumerate(columns):
        _mark_best(column, list(cells.values()), index)
    accuracies = {method: {row.seed: row.accuracy for row in rows} for method, rows in methods.items()}
    teacher = teacher_scores(scenario)
    if teacher:
        accuracies = {TEACHER: {seed: scores["accuracy"] for seed, scores in teacher.items()}, **accuracies}
        cells[TEACHER] = _teacher_cells(columns, list(teacher.values()))
    start, end = _strip([accuracy for by_seed in accuracies.values() for accuracy in by_seed.values()])
    lines = [Line(method, tuple(cells[method]), _dots(by_seed, start, end)) for method, by_seed in accuracies.items()]
    return MethodTable(columns, tuple(lines), start, end)


def run_table(scenario: ReportScenario) -> PlainTable:
    """Every row with all its figures, as in results.csv."""
    records = [row.columns(scenario.folder) for row in scenario.rows]
    titles = tuple(dict.fromkeys(name for record in records for name in record))
    lines = tuple(tuple(_plain(record.get(title)) for title in titles) for record in records)
    return PlainTable(titles, lines)


def difference_table(configurations: Mapping[str, Mapping[str, Any]]) -> PlainTable:
    """The settings, by dotted key, in which the methods differ: one line per setting, one column per method."""
    keys = dict.fromkeys(key for settings in configurations.values() for key in settings)
    lines = []
    for key in keys:
        texts = [_plain(settings.get(key)) for settings in configurations.values()]
        if len(set(texts)) > 1:
            lines.append((key, *texts))
    return PlainTable(("setting", *configurations), tuple(lines))


def category_bars(scenario: ReportScenario) -> CategoryBars | None:
    """The accuracies by question type; None where there are fewer than two types."""
    methods = rows_by_method(scenario)
    categories = tuple(next(iter(methods.values()))[0].accuracy_by_category)
    if len(categories) < 2:
        return None
    teacher = [scores["accuracy_by_category"] for scores in teacher_scores(scenario).values()]
    by_method = {method: [row.accuracy_by_category for row in rows] for method, rows in methods.items()}
    return CategoryBars(
        categories,
        means={method: _means(rows, categories) for method, rows in by_method.items()},
        deviations={
            method: [statistics.stdev([row[name] for row in rows]) if len(rows) > 1 else 0.0 for name in categories]
            for method, rows in by_method.items()
        },
        teacher=_means(teacher, categories) if teacher else None,
    )


def _means(rows: Sequence[Mapping[str, float]], categories: Sequence[str]) -> list[float]:
    return [statistics.fmean([row[name] for row in rows]) for name in categories]


def _columns(rows: Sequence[ResultRow]) -> tuple[Column, ...]:
    """The columns for which any row has a figure."""
    columns = (
        Column("accuracy", "%", 1, "higher", lambda row: row.accuracy),
        Column("validation", "%", 1, "higher", lambda row: row.validation_accuracy),
        Column("agreement", "%", 1, "higher", lambda row: row.agreement),
        Column("ECE", "", 3, "lower", lambda row: row.expected_calibration_error),
        *_beta_columns(rows),
        Column("time", "s", 1, "", lambda row: row.seconds),
    )
    return tuple(column for column in columns if any(column.value(row) is not None for row in rows))


def _beta_columns(rows: Sequence[ResultRow]) -> list[Column]:
    """One column where no method has two channels, otherwise one for each channel."""
    if all(len(row.betas) <= 1 for row in rows):
        return [Column("final β", "", 2, "", lambda row: next(iter(row.betas.values()), None))]

    def of_channel(channel: str) -> Column:
        return Column(f"final β {channel}", "", 2, "", lambda row: row.betas.get(channel))

    return [of_channel(channel) for channel in dict.fromkeys(name for row in rows for name in row.betas)]


def _cell(column: Column, rows: Sequence[ResultRow]) -> Cell:
    return _summary([column.value(row) for row in rows], column.digits)


def _summary(figures: Sequence[float | None], digits: int) -> Cell:
    known = [figure for figure in figures if figure is not None]
    if not known or len(known) < len(figures):
        return Cell(MISSING)
    mean = statistics.fmean(known)
    return Cell(mean_and_deviation(known, digits), None if math.isnan(mean) else mean)


def _mark_best(column: Column, cells: Sequence[list[Cell]], index: int) -> None:
    keys = [key for line in cells if (key := line[index].key) is not None]
    if not column.better or len(keys) < 2:
        return
    best = max(keys) if column.better == "higher" else min(keys)
    for line in cells:
        line[index] = replace(line[index], best=line[index].key == best)


def _teacher_cells(columns: Sequence[Column], scores: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Only what an evaluation alone tells: the rest belongs to distillation."""
    figures = {"accuracy": "accuracy", "ECE": "expected_calibration_error"}
    return [
        _summary([each[figures[column.title]] for each in scores], column.digits)
        if column.title in figures
        else Cell(MISSING)
        for column in columns
    ]


def _strip(accuracies: Sequence[float]) -> tuple[float, float]:
    known = [accuracy for accuracy in accuracies if not math.isnan(accuracy)] or [0.0]
    start = STRIP_STEP * math.floor(min(known) / STRIP_STEP)
    return float(start), float(max(STRIP_STEP * math.ceil(max(known) / STRIP_STEP), start + STRIP_STEP))


def _dots(accuracies: Mapping[int, float], start: float, end: float) -> tuple[Dot, ...]:
    return tuple(
        Dot(seed, accuracy, round(100 * (accuracy - start) / (end - start), 2))
        for seed, accuracy in accuracies.items()
        if not math.isnan(accuracy)
    )


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)

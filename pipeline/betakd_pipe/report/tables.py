"""The tables of the report: cells that know how they are sorted, shown on the page and written beside it."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from betakd_pipe.ablation.table import mean_and_deviation
from betakd_pipe.report.records import ReportScenario, ShapedTable

MISSING = "–"
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown; `key`, the number that it is sorted by (None: at the end), and its deviation over seeds."""

    text: str
    key: float | None = None
    deviation: float | None = None
    best: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """One seed's accuracy; `position` in percent of the strip's width."""

    seed: int
    accuracy: float
    position: float


@dataclass(frozen=True, slots=True)
class Line:
    """A row: its name, which may be a method's, its cells, a dot for each seed where the table has a strip, and what it
    shares with the lines that it stands with and is set off from others by."""

    name: str
    cells: tuple[Cell, ...]
    dots: tuple[Dot, ...] = ()
    group: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Strip:
    """The accuracies, in percent, that a strip of dots runs between."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Table:
    """A table under a title; the first of `headings` is that of the names. `name` is that of its files."""

    name: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str = ""
    strip: Strip | None = None


def summary_cell(figures: Sequence[float | None], digits: int) -> Cell:
    """`mean ± sample deviation` over seeds, a dash where a seed has no figure."""
    known = [figure for figure in figures if figure is not None]
    if not known or len(known) < len(figures):
        return Cell(MISSING)
    mean = statistics.fmean(known)
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Cell(mean_and_deviation(known, digits), None if math.isnan(mean) else mean, deviation)


def mark_best(lines: Sequence[Line], better: Sequence[Better]) -> tuple[Line, ...]:
    """The lines with the best of each column marked, where there are two to choose from."""
    marked = [list(line.cells) for line in lines]
    for column, direction in enumerate(better):
        keys = [cells[column].key for cells in marked]
        known = [key for key in keys if key is not None]
        if direction and len(known) > 1:
            best = max(known) if direction == "higher" else min(known)
            for cells in marked:
                cells[column] = replace(cells[column], best=cells[column].key == best)
    return tuple(replace(line, cells=tuple(cells)) for line, cells in zip(lines, marked, strict=True))


def text_table(name: str, headings: Sequence[str], lines: Sequence[Sequence[str]], note: str = "") -> Table:
    """A table of plain texts, the first of each line its name."""
    rows = tuple(Line(first, tuple(Cell(text) for text in rest)) for first, *rest in lines)
    return Table(name, tuple(headings), rows, note)


def run_table(scenario: ReportScenario) -> Table:
    """Every row with all its figures, as in results.csv."""
    records = [row.columns(scenario.folder) for row in scenario.rows]
    titles = tuple(dict.fromkeys(name for record in records for name in record))
    return text_table("runs", titles, [[plain(record.get(title)) for title in titles] for record in records])


def difference_table(configurations: Mapping[str, Mapping[str, Any]]) -> Table:
    """The settings, by dotted key, in which the methods differ: one line per method, one column per setting."""
    keys = dict.fromkeys(key for settings in configurations.values() for key in settings)
    different = [key for key in keys if len({plain(each.get(key)) for each in configurations.values()}) > 1]
    lines = [(method, *(plain(each.get(key)) for key in different)) for method, each in configurations.items()]
    return text_table("settings", ("method", *different), lines)


def shown_shape(shaped: ShapedTable) -> Table:
    """A table whose shape the ablation chose."""
    return text_table("shaped", shaped.headers, shaped.lines, " ".join(shaped.notes))


def plain(value: Any) -> str:
    """A value as text, a number with six digits."""
    if value is None:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def signed(value: float, digits: int) -> str:
    """A number with its sign, a minus being one and no hyphen."""
    return f"{value:+.{digits}f}".replace("-", "−")


def as_markdown(table: Table) -> str:
    """The table as GitHub shows it."""
    lines = [table.headings, ["---"] * len(table.headings)]
    lines += [[line.name, *(cell.text for cell in line.cells)] for line in table.lines]
    rows = ["| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in lines]
    note = f"\n{table.note}\n" if table.note else ""
    return "\n".join(rows) + "\n" + note


def as_csv(table: Table) -> str:
    """The table as plain numbers where it has numbers: each mean, and its deviation over seeds in a column of its own.

    A figure that is missing is empty.
    """
    columns = list(zip(*(line.cells for line in table.lines), strict=True))
    deviates = [any(cell.deviation is not None for cell in column) for column in columns]
    headings = [table.headings[0]]
    for heading, several in zip(table.headings[1:], deviates, strict=True):
        headings += [heading, f"{heading}, deviation"] if several else [heading]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    for line in table.lines:
        values: list[str | float | None] = [line.name]
        for cell, several in zip(line.cells, deviates, strict=True):
            value = cell.key if cell.key is not None else "" if cell.text == MISSING else cell.text
            values += [value, cell.deviation] if several else [value]
        writer.writerow(values)
    return text.getvalue()

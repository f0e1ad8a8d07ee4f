"""Tables of the shape that a spec asks for: a line per method, mean ± deviation, the paper's beside."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from betakd_pipe.ablation.paper_tables import Reported, reported
from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.spec import AblationSpec, TableSettings, all_methods, variants_of_methods
from betakd_pipe.ablation.table import MISSING
from betakd_stages.errors import ConfigError
from betakd_stages.files import write_atomically

TABLE_MARKDOWN = "table.md"
TABLE_CSV = "table.csv"
DIGITS = {"seconds_per_step": 3, "expected_calibration_error": 3, "peak_memory_mib": 0, "peak_gpu_memory_mib": 0}
"""Digits after the point of figures that are not shown with one."""


@dataclass(frozen=True, slots=True)
class ShapedTable:
    """A table of texts for people, and the same as plain values for programs."""

    title: str
    headers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Cell:
    """One figure of one method: ours over the seeds that are done, and the paper's. None: there is none."""

    num_seeds: int
    mean: float | None
    deviation: float | None
    gain: float | None
    paper: Sequence[float]
    paper_gain: float | None


def shaped_table(spec: AblationSpec, rows: Sequence[ResultRow]) -> ShapedTable:
    """The table of the rows that are done; a method without any has dashes.

    A column that no run has a figure for is left out, unless it is the first. A gain is the mean, over the seeds that
    both have, of a method's figure minus that of the one it is compared with. Raises ConfigError for a `gain_over` or
    `reported` that does not exist.
    """
    settings = spec.table or TableSettings()
    paper = reported(settings.reported) if settings.reported else None
    references = _references(spec, settings)
    by_method = {method: {row.seed: row for row in rows if row.method == method} for method in references}
    columns = {
        heading: name
        for place, (heading, name) in enumerate(settings.columns.items())
        if place == 0 or any(row.figure(name) is not None for row in rows)
    }
    cells = {
        method: {heading: _cell(name, method, references, by_method, paper) for heading, name in columns.items()}
        for method in references
    }
    places = _places(spec)
    headings = [f"{heading}{suffix}" for heading in columns for suffix in (["", ", paper"] if paper else [""])]
    return ShapedTable(
        title=settings.title,
        headers=(*places[0], *headings),
        lines=_lines(spec, settings, cells, columns, places[1]),
        notes=tuple(_notes(spec, settings, rows, paper)),
        records=tuple(
            {
                "method": method,
                **dict(zip(places[0], places[1][method], strict=True)),
                **{key: value for heading, cell in of.items() for key, value in _record(heading, cell, paper).items()},
            }
            for method, of in cells.items()
        ),
    )


def write_shaped(out: Path, table: ShapedTable) -> None:
    """Write table.md and table.csv into the folder of an ablation."""
    write_atomically(out / TABLE_MARKDOWN, as_markdown(table))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    write_atomically(out / TABLE_CSV, text.getvalue())


def as_markdown(table: ShapedTable) -> str:
    """The table as GitHub's Markdown."""
    grid = [table.headers, tuple("---" for _ in table.headers), *table.lines]
    lines = ["| " + " | ".join(cells) + " |" for cells in grid]
    return "\n".join([*([f"**{table.title}**", ""] if table.title else []), *lines, "", *table.notes]).rstrip() + "\n"


def print_shaped(table: ShapedTable, console: Console | None = None) -> None:
    """Print the table on the terminal."""
    shown = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=table.title or None, title_justify="left")
    for header in table.headers:
        shown.add_column(header, overflow="fold")
    for line in table.lines:
        shown.add_row(*line)
    console = console or Console()
    console.print(shown)
    for note in table.notes:
        console.print(note, highlight=False)


def _references(spec: AblationSpec, settings: TableSettings) -> dict[str, str | None]:
    """What each method is compared with: the combination with `gain_over` instead of its last variant."""
    combined = variants_of_methods(spec)
    methods = all_methods(spec)
    over = settings.gain_over
    if over is None:
        return dict.fromkeys(methods)
    last = list(list(spec.axes.values())[-1]) if spec.axes else []
    if over not in last and over not in methods:
        known = ", ".join([*last, *methods])
        raise ConfigError(f"table.gain_over: found {over}, expected a variant of the last axis or a method: {known}")
    found: dict[str, str | None] = {}
    for method in methods:
        in_axes = over in last and method in combined
        reference = "-".join((*combined[method][:-1], over)) if in_axes else over
        found[method] = reference if reference != method and reference in methods else None
    return found


def _places(spec: AblationSpec) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Headings and entries of the first columns: a method's variants where axes are all there is, else its name."""
    if spec.axes and not spec.methods and not spec.grid:
        return tuple(spec.axes), variants_of_methods(spec)
    return ("method",), {method: (method,) for method in all_methods(spec)}


def _cell(
    name: str,
    method: str,
    references: Mapping[str, str | None],
    by_method: Mapping[str, Mapping[int, ResultRow]],
    paper: Reported | None,
) -> _Cell:
    def figures(of: str) -> dict[int, float]:
        found = {seed: row.figure(name) for seed, row in by_method[of].items()}
        return {seed: figure for seed, figure in found.items() if figure is not None}

    def papers(of: str) -> Sequence[float]:
        return paper.figures.get(of, {}).get(name, ()) if paper else ()

    own, reference = figures(method), references[method]
    others = figures(reference) if reference else {}
    gains = [figure - others[seed] for seed, figure in own.items() if seed in others]
    both = papers(method) and papers(reference) if reference else ()
    return _Cell(
        num_seeds=len(own),
        mean=statistics.fmean(own.values()) if own else None,
        deviation=statistics.stdev(own.values()) if len(own) > 1 else None,
        gain=statistics.fmean(gains) if gains else None,
        paper=papers(method),
        paper_gain=papers(method)[0] - papers(reference)[0] if reference and both else None,
    )


def _lines(
    spec: AblationSpec,
    settings: TableSettings,
    cells: Mapping[str, Mapping[str, _Cell]],
    columns: Mapping[str, str],
    places: Mapping[str, Sequence[str]],
) -> tuple[tuple[str, ...], ...]:
    """The texts; what stands in the first columns is not repeated from line to line."""
    lines = []
    before: Sequence[str] = ()
    for method, of_method in cells.items():
        names = places[method]
        same = next((place for place, pair in enumerate(zip(names, before, strict=False)) if pair[0] != pair[1]), 0)
        labels = ["" if place < same else settings.labels.get(name, name) for place, name in enumerate(names)]
        texts = []
        for heading, cell in of_method.items():
            digits = DIGITS.get(columns[heading], 1)
            texts.append(_ours(cell, digits, len(spec.seeds)))
            texts += [_papers(cell, digits)] if settings.reported else []
        lines.append((*labels, *texts))
        before = names
    return tuple(lines)


def _ours(cell: _Cell, digits: int, num_seeds: int) -> str:
    if cell.mean is None:
        return MISSING
    parts = [f"{cell.mean:.{digits}f}"]
    parts += [f"± {cell.deviation:.{digits}f}"] if cell.deviation is not None else []
    parts += [f"({cell.gain:+.{digits}f})"] if cell.gain is not None else []
    parts += [f"[{cell.num_seeds} of {num_seeds}]"] if cell.num_seeds < num_seeds else []
    return " ".join(parts)


def _papers(cell: _Cell, digits: int) -> str:
    if not cell.paper:
        return MISSING
    gain = [] if cell.paper_gain is None else [f"({cell.paper_gain:+.{digits}f})"]
    return " ".join([" ± ".join(f"{figure:.{digits}f}" for figure in cell.paper), *gain])


def _record(heading: str, cell: _Cell, paper: Reported | None) -> dict[str, float | int | None]:
    ours = {"": cell.mean, " deviation": cell.deviation, " gain": cell.gain, " seeds": cell.num_seeds}
    mean, deviation = (*cell.paper, None, None)[:2]
    papers = {" paper": mean, " paper deviation": deviation, " paper gain": cell.paper_gain} if paper else {}
    return {f"{heading}{suffix}": value for suffix, value in {**ours, **papers}.items()}


def _notes(spec: AblationSpec, settings: TableSettings, rows: Sequence[ResultRow], paper: Reported | None) -> list[str]:
    notes = []
    num_wanted = len(all_methods(spec)) * len(spec.seeds)
    if len(rows) < num_wanted:
        notes.append(f"{len(rows)} of {num_wanted} runs are done; [1 of 3]: with one of three seeds.")
    if len(spec.seeds) > 1:
        notes.append(f"Mean ± standard deviation over {len(spec.seeds)} seeds.")
    if settings.gain_over is not None:
        notes.append(f"(+0.1): difference to {settings.labels.get(settings.gain_over, settings.gain_over)}.")
    if paper is not None:
        notes.append(f"Paper: {paper.source}.")
        asked = spec.evaluate.get("benchmark", "")
        benchmarks = [asked] if isinstance(asked, str) else asked
        if not any(name.startswith(paper.benchmark) for name in benchmarks):
            others = "other models and other data than the paper's, of which only the order of methods can be compared."
            notes.append(f"Ours is {', '.join(benchmarks)}: {others}")
    return [*notes, *([settings.note] if settings.note else [])]

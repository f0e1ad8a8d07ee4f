"""The page: everything about every scenario in one HTML file, and the figures as PNG beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from betakd_pipe.report.curves import training_panels
from betakd_pipe.report.figures import draw_category_bars, draw_panel, write_png
from betakd_pipe.report.records import TEACHER, ReportError, ReportScenario, read_metrics, rows_by_method, seeds_of
from betakd_pipe.report.samples import Card, sample_cards
from betakd_pipe.report.settings_shown import ShownSettings, shown_settings
from betakd_pipe.report.styles import Style, method_styles
from betakd_pipe.report.tables import MethodTable, PlainTable, category_bars, method_table, run_table
from betakd_stages.files import write_atomically

PAGE = "report.html"
FIGURES = "figures"
TEMPLATE = "page.html.j2"


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """An inline SVG with its title and a note on how to read it."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Section:
    """One scenario, ready to be shown."""

    anchor: str
    name: str
    description: str
    seeds: Sequence[int]
    methods: Sequence[str]
    table: MethodTable
    runs: PlainTable
    bars: ShownFigure | None
    curves: Sequence[ShownFigure]
    cards: Sequence[Card]
    settings: ShownSettings


def write_report(out: Path, title: str, summary: Sequence[str], scenarios: Sequence[ReportScenario]) -> Path:
    """The path of `out`/report.html, written with `out`/figures/*.png; the same inputs give the same bytes.

    Raises ReportError for a scenario without rows, for two of one name and for files of runs that are missing or
    damaged; ConfigError, DataError and CacheError where a run's configuration, samples or cache cannot be read.
    """
    anchors = [_file_name(scenario.name) for scenario in scenarios]
    for anchor in anchors:
        if anchors.count(anchor) > 1:
            raise ReportError(f"found two scenarios called {anchor}, expected different names: rename one of them")
    methods = dict.fromkeys(method for scenario in scenarios for method in rows_by_method(scenario))
    styles = method_styles(methods)
    figures = out / FIGURES
    sections = [
        _section(scenario, anchor, styles, figures) for scenario, anchor in zip(scenarios, anchors, strict=True)
    ]
    page = _render(title=title, summary=summary, sections=sections, styles=styles, teacher=TEACHER)
    write_atomically(out / PAGE, page)
    return out / PAGE


def _section(scenario: ReportScenario, anchor: str, styles: Mapping[str, Style], figures: Path) -> Section:
    cards = sample_cards(scenario)  # first, because it refuses answers to different questions
    return Section(
        anchor=anchor,
        name=scenario.name,
        description=scenario.description,
        seeds=seeds_of(scenario),
        methods=tuple(rows_by_method(scenario)),
        table=method_table(scenario),
        runs=run_table(scenario),
        bars=_bars(scenario, anchor, styles, figures),
        curves=_curves(scenario, anchor, styles, figures),
        cards=cards,
        settings=shown_settings(scenario),
    )


def _bars(scenario: ReportScenario, anchor: str, styles: Mapping[str, Style], figures: Path) -> ShownFigure | None:
    bars = category_bars(scenario)
    if bars is None:
        return None
    name = f"{anchor}-accuracy-by-type"
    svg, png = draw_category_bars(bars, name, styles)
    write_png(figures / f"{name}.png", png)
    notes = ["Mean over seeds; whiskers are ± one standard deviation."] if len(seeds_of(scenario)) > 1 else []
    if bars.teacher is not None:
        notes.append("The line across each group is the teacher.")
    return ShownFigure("Accuracy by question type", " ".join(notes), Markup(svg))


def _curves(scenario: ReportScenario, anchor: str, styles: Mapping[str, Style], figures: Path) -> list[ShownFigure]:
    metrics = {method: [read_metrics(row.run) for row in rows] for method, rows in rows_by_method(scenario).items()}
    shown = []
    for panel in training_panels(metrics):
        name = f"{anchor}-{_file_name(panel.name)}"
        svg, png = draw_panel(panel, name, styles)
        write_png(figures / f"{name}.png", png)
        shown.append(ShownFigure(panel.title, panel.note, Markup(svg)))
    return shown


def _render(**values: Any) -> str:
    # A file called page.html.j2 would not be escaped by jinja's choice by suffix, so everything is.
    environment = Environment(
        loader=PackageLoader("betakd_pipe.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(**values)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)

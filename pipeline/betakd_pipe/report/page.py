"""The page: everything about every scenario in one HTML file; its tables and figures as files beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from betakd_pipe.report.calibration import calibration_table
from betakd_pipe.report.categories import quartile_table
from betakd_pipe.report.comparisons import comparisons
from betakd_pipe.report.cost import cache_cost_table, run_cost_table
from betakd_pipe.report.distances import distance_table
from betakd_pipe.report.drawing import Drawn
from betakd_pipe.report.examples import Examples, weight_examples
from betakd_pipe.report.group_figures import Artist, ShownGroup
from betakd_pipe.report.groups import MAX_METHODS, method_groups
from betakd_pipe.report.headline import headline
from betakd_pipe.report.method_table import method_table
from betakd_pipe.report.records import TEACHER, ReportError, ReportScenario, read_runs, seeds_of
from betakd_pipe.report.samples import Cards, sample_cards
from betakd_pipe.report.settings_shown import ShownSettings, shown_settings
from betakd_pipe.report.setup import setup_table
from betakd_pipe.report.styles import Style
from betakd_pipe.report.tables import Table, as_csv, as_markdown, run_table, shown_shape
from betakd_pipe.report.weightings import weighting_table
from betakd_pipe.report.weights import weight_stories, weight_table
from betakd_stages.files import write_atomically

FIGURES, TABLES = "figures", "tables"
TEMPLATE = "page.html.j2"


@dataclass(frozen=True, slots=True)
class Section:
    """One scenario, ready to be shown; what there is nothing to say about is None or empty."""

    anchor: str
    name: str
    description: str
    headline: Sequence[str]
    seeds: Sequence[int]
    styles: Mapping[str, Style]
    tables: Mapping[str, Table]
    """By name: setup, methods, weightings, shaped, weights, distances, quartiles, calibration, cost, caches, runs."""
    shaped_title: str
    bars: Sequence[ShownGroup]
    weights: Sequence[ShownGroup]
    distances: Sequence[ShownGroup]
    calibration: Sequence[ShownGroup]
    curves: Sequence[ShownGroup]
    examples: Examples | None
    cards: Cards
    settings: ShownSettings
    drawn: Mapping[str, Drawn]
    """All figures, by the names of their files."""


def write_report(page: Path, title: str, summary: Sequence[str], scenarios: Sequence[ReportScenario]) -> Path:
    """The path of `page`, written with tables/ and figures/ in its folder; the same inputs give the same bytes.

    Raises ReportError for a scenario without rows, for two of one name and for files of runs that are missing or
    damaged; ConfigError where a run's configuration cannot be read.
    """
    anchors = [_file_name(scenario.name) for scenario in scenarios]
    for anchor in anchors:
        if anchors.count(anchor) > 1:
            raise ReportError(f"found two scenarios called {anchor}, expected different names: rename one of them")
    sections = [_section(scenario, anchor) for scenario, anchor in zip(scenarios, anchors, strict=True)]
    text = _render(title=title, summary=summary, sections=sections, teacher=TEACHER)
    for section in sections:
        _write_tables(page.parent / TABLES, section)
        for name, drawn in section.drawn.items():
            drawn.write(page.parent / FIGURES, name)
    write_atomically(page, text)
    return page


def _section(scenario: ReportScenario, anchor: str) -> Section:
    runs = read_runs(scenario)
    groups = method_groups(runs)
    shown = groups[0].of(runs) if len(runs) > MAX_METHODS else runs
    cards = sample_cards(scenario, shown)  # before any figure, because it refuses answers to different questions
    compared = comparisons(runs, scenario.baseline)
    stories = weight_stories(runs)
    settings = shown_settings(runs)
    tables = {
        "setup": setup_table(scenario, runs),
        "methods": method_table(scenario, runs, compared),
        "weightings": weighting_table(scenario, runs, compared),
        "shaped": shown_shape(scenario.shaped) if scenario.shaped else None,
        "weights": weight_table(runs, stories),
        "distances": distance_table(runs),
        "quartiles": quartile_table(scenario, runs),
        "calibration": calibration_table(runs),
        "cost": run_cost_table(runs),
        "caches": cache_cost_table(runs),
        "runs": run_table(scenario),
        "settings": settings.differences,
    }
    artist = Artist(scenario, runs, groups, anchor)
    return Section(
        anchor=anchor,
        name=scenario.name,
        description=scenario.description,
        headline=headline(scenario, runs, compared, stories),
        seeds=seeds_of(scenario),
        styles={method: style for group in reversed(groups) for method, style in group.styles.items()},
        tables={name: table for name, table in tables.items() if table is not None},
        shaped_title=scenario.shaped.title if scenario.shaped else "",
        bars=artist.bars(),
        weights=artist.weights(),
        distances=artist.distances(),
        calibration=artist.calibration(),
        curves=artist.curves(),
        examples=weight_examples(runs),
        cards=cards,
        settings=settings,
        drawn=artist.drawn,
    )


def _write_tables(folder: Path, section: Section) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in section.tables.items():
        write_atomically(folder / f"{section.anchor}-{name}.md", as_markdown(table))
        write_atomically(folder / f"{section.anchor}-{name}.csv", as_csv(table))


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

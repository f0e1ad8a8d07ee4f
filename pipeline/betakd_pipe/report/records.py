"""What the report reads: the rows of an ablation, and the files that its runs left on disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.rows import EVALUATION, TIMINGS, ResultRow
from betakd_pipe.config import read_layer
from betakd_pipe.run_folder import CONFIG
from betakd_stages.errors import UserError
from betakd_stages.settings.distill import listed

TEACHER = "teacher"
TEACHER_EVALUATION = "teacher-evaluation"
# As betakd_stages names them; importing the names from there would load torch, which takes seconds.
METRICS = "metrics.jsonl"
PROBE = "probe.jsonl"
PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"
ENERGY = "energy/"
"""Before a channel's name in the metrics."""
FEATURE = "feature:"
"""Before a feature's name in that of its channel."""

Records = Sequence[Mapping[str, Any]]


class ReportError(UserError):
    """The results of an ablation cannot be reported."""


@dataclass(frozen=True, slots=True)
class ReportScenario:
    """One ablation and what it is about.

    `folder` holds seed-N/teacher-evaluation, where the teacher's scores are read if they are there; rows of a method
    called `teacher` only appear in the table of all runs.
    """

    name: str
    description: str
    """One sentence."""
    rows: Sequence[ResultRow]
    folder: Path
    num_planned: int | None = None
    """Runs that were asked for; None: those there are."""
    baseline: str | None = None
    """The method that all others are compared with; None: see `references`."""
    shaped: "ShapedTable | None" = None
    """A table of another shape, such as the paper's."""
    weightings: Mapping[str, str] = field(default_factory=dict)
    """What the ablation calls a method's way to set weights, where it combines losses with such ways."""
    paper_gains: Mapping[str, float] = field(default_factory=dict)
    """By how many points a method is above its reference in the paper, where the paper says."""


@dataclass(frozen=True, slots=True)
class ShapedTable:
    """A table whose shape the ablation chose: headings, lines of texts, and notes."""

    title: str
    headers: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a student and what it left; a file that older versions did not write is empty."""

    row: ResultRow
    settings: Mapping[str, Any]
    """Of stage two."""
    metrics: Records
    timings: Records
    probe: Records
    predictions: Records

    @property
    def channels(self) -> tuple[str, ...]:
        """The energies and features that it was trained on, energies first, as its metrics name them.

        What several teachers' are called depends on their caches; without metrics the names are those of the settings.
        """
        if not self.metrics:
            objective = self.settings["objective"]
            features = [f"{FEATURE}{each['name']}" for each in objective["features"]]
            return (*(each["name"] for each in objective["energies"]), *features)
        # By name, because a row has nothing of a channel that no sample has, so that their order is one of chance.
        return tuple(sorted(channels_in(self.metrics), key=lambda name: (name.startswith(FEATURE), name)))

    @property
    def caches(self) -> tuple[str, ...]:
        """The caches that it learned from, none or more."""
        return listed(self.settings.get("cache"))

    @property
    def weighting(self) -> str:
        """The name of its weighting."""
        return str(self.settings["weighting"]["name"])


Runs = Mapping[str, Sequence[Run]]
"""By method, in order of first appearance; of a method by seed."""


def read_runs(scenario: ReportScenario) -> dict[str, list[Run]]:
    """The students' runs by method. Raises ReportError where there is none, or a file is missing or damaged."""
    runs: dict[str, list[Run]] = {}
    for row in scenario.rows:
        if row.method != TEACHER:
            runs.setdefault(row.method, []).append(_read_run(row))
    if not runs:
        raise ReportError(
            f"scenario {scenario.name}: found no finished run, expected at least one: see why the runs failed"
        )
    return runs


def channels_in(metrics: Records) -> list[str]:
    """The channels that these rows of metrics are of, in order of first appearance."""
    names = dict.fromkeys(name for row in metrics for name in row if name.startswith(ENERGY))
    # Not what a channel has by quartile of the teacher's entropy, such as energy/fkl/quartile1.
    return [name.removeprefix(ENERGY) for name in names if name.count("/") == 1]


def _read_run(row: ResultRow) -> Run:
    return Run(
        row=row,
        settings=read_layer(row.run / CONFIG).values,
        metrics=_read_lines(row.run / METRICS),
        timings=_read_lines(row.run / TIMINGS) if (row.run / TIMINGS).is_file() else [],
        probe=_read_lines(row.run / PROBE) if (row.run / PROBE).is_file() else [],
        predictions=read_predictions(row.run / EVALUATION),
    )


def seeds_of(scenario: ReportScenario) -> list[int]:
    """The seeds of the rows, ascending."""
    return sorted({row.seed for row in scenario.rows})


def teacher_evaluations(scenario: ReportScenario) -> dict[int, Path]:
    """Where the teacher was evaluated, by seed: the reference of a run's evaluation, or beside the ablation's runs."""
    folders: dict[int, Path] = {}
    for row in scenario.rows:
        config = row.run / EVALUATION / CONFIG
        named = read_layer(config).values.get("reference") if config.is_file() else None
        beside = scenario.folder / f"seed-{row.seed}" / TEACHER_EVALUATION
        for folder in (Path(named) if named else beside, beside):
            if folder.is_dir():
                folders.setdefault(row.seed, folder)
    return folders


def teacher_scores(scenario: ReportScenario) -> dict[int, Mapping[str, Any]]:
    """The teacher's scores by seed; only of seeds whose teacher was evaluated."""
    return {seed: read_scores(folder) for seed, folder in teacher_evaluations(scenario).items()}


def read_scores(folder: Path) -> Mapping[str, Any]:
    """scores.json of an evaluation, of several benchmarks that of the first.

    Raises ReportError where it is missing or damaged.
    """
    scores: Mapping[str, Any] = _parse(_read(folder / SCORES), str(folder / SCORES))
    return next(iter(scores["benchmarks"].values())) if "benchmarks" in scores else scores


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """predictions.jsonl of an evaluation, of several benchmarks that of the first.

    Raises ReportError where it is missing or damaged.
    """
    if (folder / PREDICTIONS).is_file():
        return _read_lines(folder / PREDICTIONS)
    scores = _parse(_read(folder / SCORES), str(folder / SCORES))
    first = next(iter(scores.get("benchmarks", {})), ".")
    return _read_lines(folder / first / PREDICTIONS)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = _read(path).splitlines()
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _read(path: Path) -> str:
    if not path.is_file():
        raise ReportError(f"{path}: no such file, expected that of a finished run: run the ablation again, it goes on")
    return path.read_text(encoding="utf-8")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{place}: not JSON ({error.msg}): delete that run and run the ablation again") from None

"""What the report reads: the rows of an ablation, and the files that its runs left on disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.rows import EVALUATION, ResultRow
from betakd_stages.errors import UserError

TEACHER = "teacher"
TEACHER_EVALUATION = "teacher-evaluation"
# As betakd_stages names them; importing the names from there would load torch, which takes seconds.
METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"


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


def rows_by_method(scenario: ReportScenario) -> dict[str, list[ResultRow]]:
    """The students' rows, methods in order of first appearance. Raises ReportError if there is none."""
    methods: dict[str, list[ResultRow]] = {}
    for row in scenario.rows:
        if row.method != TEACHER:
            methods.setdefault(row.method, []).append(row)
    if not methods:
        raise ReportError(
            f"scenario {scenario.name}: found no finished run, expected at least one: see why the runs failed"
        )
    return methods


def seeds_of(scenario: ReportScenario) -> list[int]:
    """The seeds of the rows, ascending."""
    return sorted({row.seed for row in scenario.rows})


def teacher_folder(scenario: ReportScenario, seed: int) -> Path:
    """Where the teacher's evaluation lies, if it was made."""
    return scenario.folder / f"seed-{seed}" / TEACHER_EVALUATION


def teacher_scores(scenario: ReportScenario) -> dict[int, Mapping[str, Any]]:
    """The teacher's scores by seed; only of seeds whose teacher was evaluated."""
    folders = {seed: teacher_folder(scenario, seed) for seed in seeds_of(scenario)}
    return {seed: read_scores(folder) for seed, folder in folders.items() if folder.is_dir()}


def read_scores(folder: Path) -> Mapping[str, Any]:
    """scores.json of an evaluation. Raises ReportError where it is missing or damaged."""
    scores: Mapping[str, Any] = _parse(_read(folder / SCORES), str(folder / SCORES))
    return scores


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """predictions.jsonl of an evaluation. Raises ReportError where it is missing or damaged."""
    return _read_lines(folder / PREDICTIONS)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run. Raises ReportError where it is missing or damaged."""
    return _read_lines(run / METRICS)


def evaluation_folder(row: ResultRow) -> Path:
    """Where the evaluation of a run lies."""
    return row.run / EVALUATION


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

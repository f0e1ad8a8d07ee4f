"""A folder as a scenario of the report: that of an ablation, finished or not, or that of a single run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.reading import read_ablation
from betakd_pipe.ablation.rows import EVALUATION, ResultRow, training_seconds
from betakd_pipe.ablation.run import SPEC
from betakd_pipe.ablation.shaped import shaped_table
from betakd_pipe.ablation.spec import AblationSpec, all_methods, variants_of_methods
from betakd_pipe.config import read_layer
from betakd_pipe.report.records import SCORES, ReportError, ReportScenario, ShapedTable, read_scores
from betakd_pipe.run_folder import CONFIG
from betakd_stages.settings.distill import listed

RESULT = "result.json"


def read_scenario(folder: Path, baseline: str | None = None) -> ReportScenario:
    """The scenario of a folder that `ablate` or `distill` wrote.

    Raises ReportError for another folder and for a run without evaluation, ConfigError for a damaged configuration.
    """
    if (folder / SPEC).is_file():
        return _of_ablation(folder, baseline)
    if (folder / RESULT).is_file() and (folder / CONFIG).is_file():
        return _of_run(folder, baseline)
    raise ReportError(
        f"{folder}: holds neither an ablation ({SPEC}) nor a finished run ({RESULT}): name a folder that betakd-pipe "
        "ablate or distill wrote"
    )


def _of_ablation(folder: Path, baseline: str | None) -> ReportScenario:
    spec, rows = read_ablation(folder)
    return ReportScenario(
        name=folder.resolve().name,
        description=_description(spec),
        rows=rows,
        folder=folder,
        num_planned=len(all_methods(spec)) * len(spec.seeds),
        baseline=baseline,
        weightings=_weightings(spec),
        **_shaped(spec, rows),
    )


def _shaped(spec: AblationSpec, rows: Sequence[ResultRow]) -> dict[str, Any]:
    """The table that the spec asks for, and the paper's gains in its first column; nothing where it asks for none."""
    if spec.table is None:
        return {}
    table = shaped_table(spec, rows)
    gain = f"{next(iter(spec.table.columns))} paper gain"
    gains = {record["method"]: record[gain] for record in table.records if record.get(gain) is not None}
    return {"shaped": ShapedTable(table.title, table.headers, table.lines, table.notes), "paper_gains": gains}


def _weightings(spec: AblationSpec) -> dict[str, str]:
    """The variant of the last axis that each method has, where that axis is about weights alone."""
    variants = list(spec.axes.values())[-1] if spec.axes else {}
    if not all(settings.keys() == {"weighting"} for settings in variants.values()):
        return {}
    return {method: names[-1] for method, names in variants_of_methods(spec).items()}


def _description(spec: AblationSpec) -> str:
    def counted(number: int, what: str) -> str:
        return f"{number} {what}" if number == 1 else f"{number} {what}s"

    size = f"{counted(len(all_methods(spec)), 'method')}, {counted(len(spec.seeds), 'seed')}"
    parts = [
        f"student {spec.student}" if spec.student else "",
        f"cache {', '.join(listed(spec.cache))}" if spec.cache else "",
    ]
    asked = spec.evaluate.get("benchmark", "")
    benchmark = asked if isinstance(asked, str) else ", ".join(asked)
    return "; ".join(
        [size, *filter(None, [f"data {spec.data}", *parts, f"benchmark {benchmark}" if benchmark else ""])]
    )


def _of_run(folder: Path, baseline: str | None) -> ReportScenario:
    evaluation = folder / EVALUATION
    if not (evaluation / SCORES).is_file():
        raise ReportError(
            f"{folder}: has no {EVALUATION}/{SCORES}, expected the scores of this run: "
            f"betakd-pipe evaluate {folder} --benchmark NAME --out {evaluation}"
        )
    scores = read_scores(evaluation)
    metrics = json.loads((folder / RESULT).read_text(encoding="utf-8"))["metrics"]
    name = folder.resolve().name
    row = ResultRow(
        method=name,
        seed=read_layer(folder / CONFIG).values["seed"],
        accuracy=scores["accuracy"],
        accuracy_by_category=scores["accuracy_by_category"],
        agreement=scores.get("agreement"),
        expected_calibration_error=scores["expected_calibration_error"],
        metrics=metrics,
        seconds=training_seconds(folder),
        run=folder,
    )
    return ReportScenario(name, "One run.", [row], folder, baseline=baseline)

"""The rows of an ablation: one run and its scores; as row.json in the run folder, and as results.csv over all."""

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.run_folder import check_configuration
from betakd_stages.files import write_atomically

EVALUATION = "evaluation"
ROW = "row.json"
RESULTS = "results.csv"
TIMINGS = "timings.jsonl"

_BETA = re.compile("beta/[^/]+")  # not its quantiles, such as beta/fkl/q50


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One method with one seed. Accuracies and agreement in percent."""

    method: str
    seed: int
    accuracy: float
    accuracy_by_category: Mapping[str, float]
    agreement: float | None
    """Share of the teacher's answers that the student gives too; None without a reference."""
    expected_calibration_error: float
    metrics: Mapping[str, float]
    """The final metrics of stage two."""
    seconds: float
    """Training time of stage two over all sessions, without loading and evaluation."""
    run: Path
    """The run folder; that of an identical run where this one was not needed."""

    @property
    def validation_accuracy(self) -> float | None:
        """Percent on the validation data; None where none was named."""
        return self.metrics.get("validation_accuracy")

    @property
    def betas(self) -> dict[str, float]:
        """The final mean weight of each channel."""
        means = {name: value for name, value in self.metrics.items() if _BETA.fullmatch(name)}
        return {name.removeprefix("beta/"): value for name, value in means.items()}

    def columns(self, out: Path) -> dict[str, Any]:
        """The row of results.csv; `run` is relative to the folder `out`."""
        return {
            "method": self.method,
            "seed": self.seed,
            "accuracy": self.accuracy,
            "validation_accuracy": self.validation_accuracy,
            "agreement": self.agreement,
            "ece": self.expected_calibration_error,
            **{f"accuracy_{category}": value for category, value in self.accuracy_by_category.items()},
            **{f"beta_{channel}": value for channel, value in self.betas.items()},
            "seconds": round(self.seconds, 2),
            "run": os.path.relpath(self.run, out),
        }


def result_row(run: PlannedRun, scores: Mapping[str, Any], metrics: Mapping[str, float]) -> ResultRow:
    """The row of a run from the scores of its evaluation and the final metrics of stage two."""
    return ResultRow(
        method=run.method,
        seed=run.seed,
        accuracy=scores["accuracy"],
        accuracy_by_category=scores["accuracy_by_category"],
        agreement=scores.get("agreement"),
        expected_calibration_error=scores["expected_calibration_error"],
        metrics=metrics,
        seconds=training_seconds(run.folder),
        run=run.folder,
    )


def training_seconds(run: Path) -> float:
    """Seconds of training in a run folder: the steps between two rows of timings.jsonl times the seconds of each."""
    rows = [json.loads(line) for line in (run / TIMINGS).read_text(encoding="utf-8").splitlines()]
    starts = [0, *(row["step"] for row in rows)]
    return float(sum((row["step"] - start) * row["seconds_per_step"] for row, start in zip(rows, starts, strict=False)))


def write_row(run: PlannedRun, row: ResultRow) -> None:
    """Write row.json into the run folder: from now on the run counts as done."""
    values = asdict(row)
    for name in ("method", "seed", "run"):  # the plan knows these, and the folder may be moved
        del values[name]
    write_atomically(run.folder / ROW, json.dumps(values, indent=2) + "\n")


def read_row(run: PlannedRun) -> ResultRow | None:
    """The row of a run that is done, None otherwise. Raises ConfigError where its folder holds another run."""
    row = stored_row(run)
    if row is not None:
        check_configuration(run.folder, run.settings)
        check_configuration(run.folder / EVALUATION, run.evaluation)
    return row


def stored_row(run: PlannedRun) -> ResultRow | None:
    """The row in a run's folder, whatever it was made with; None where the run is not done."""
    if not (run.folder / ROW).is_file():
        return None
    values = json.loads((run.folder / ROW).read_text(encoding="utf-8"))
    return ResultRow(method=run.method, seed=run.seed, run=run.folder, **values)


def write_results(out: Path, rows: Sequence[ResultRow]) -> None:
    """Write results.csv; a column is empty where a method has no such figure."""
    out.mkdir(parents=True, exist_ok=True)
    write_records(out / RESULTS, [row.columns(out) for row in rows])


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as CSV with the columns of all of them, `seconds` and `run` last."""
    names = list(dict.fromkeys(name for record in records for name in record))
    names.sort(key=lambda name: name in ("seconds", "run"))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(path, text.getvalue())

"""The rows of an ablation: one run and its scores; as row.json in the run folder, and as results.csv over all."""

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.run_folder import check_configuration
from betakd_stages.files import write_atomically

EVALUATION = "evaluation"
ROW = "row.json"
RESULTS = "results.csv"
TIMINGS = "timings.jsonl"

_OF_OWN_FIELD = ("accuracy", "agreement", "expected_calibration_error")
_OF_SETTINGS = ("max_new_tokens",)

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
    expected_calibration_error: float | None
    """None where the answers have no confidence."""
    metrics: Mapping[str, float]
    """The final metrics of stage two."""
    seconds: float
    """Training time of stage two over all sessions, without loading and evaluation."""
    run: Path
    """The run folder; that of an identical run where this one was not needed."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Every further number of the evaluation, such as `img_accuracy`."""
    seconds_per_step: float | None = None
    peak_memory_mib: float | None = None
    """Of the worker process on the host since it began; of this run alone where that had a process of its own."""
    peak_gpu_memory_mib: float | None = None
    """None where there is no GPU."""
    whole_seconds: float | None = None
    """From the start of the session that finished the run to its row: loading, training and evaluation."""

    @property
    def validation_accuracy(self) -> float | None:
        """Percent on the validation data; None where none was named."""
        return self.metrics.get("validation_accuracy")

    @property
    def betas(self) -> dict[str, float]:
        """The final mean weight of each channel."""
        means = {name: value for name, value in self.metrics.items() if _BETA.fullmatch(name)}
        return {name.removeprefix("beta/"): value for name, value in means.items()}

    def figure(self, name: str) -> float | None:
        """A figure by the name it has here, in `scores` or in `metrics`; None where the run has none of that name."""
        own = getattr(self, name) if name in FIGURES else None
        return own if own is not None else self.scores.get(name, self.metrics.get(name))

    def columns(self, out: Path) -> dict[str, Any]:
        """The row of results.csv; `run` is relative to the folder `out`."""
        return {
            "method": self.method,
            "seed": self.seed,
            "accuracy": self.accuracy,
            "validation_accuracy": self.validation_accuracy,
            "agreement": self.agreement,
            "ece": self.expected_calibration_error,
            **self.scores,
            **{f"accuracy_{category}": value for category, value in self.accuracy_by_category.items()},
            **{f"beta_{channel}": value for channel, value in self.betas.items()},
            "seconds_per_step": None if self.seconds_per_step is None else round(self.seconds_per_step, 4),
            "peak_memory_mib": self.peak_memory_mib,
            "peak_gpu_memory_mib": self.peak_gpu_memory_mib,
            "seconds": round(self.seconds, 2),
            "run": os.path.relpath(self.run, out),
        }


FIGURES = (
    "accuracy",
    "validation_accuracy",
    "agreement",
    "expected_calibration_error",
    "seconds",
    "seconds_per_step",
    "peak_memory_mib",
    "peak_gpu_memory_mib",
)
"""The figures that are a row's own, whatever the evaluation says."""


def result_row(
    run: PlannedRun, scores: Mapping[str, Any], metrics: Mapping[str, float], whole_seconds: float | None = None
) -> ResultRow:
    """The row of a run from the scores of its evaluation and the final metrics of stage two.

    Of several benchmarks the first gives the row's own figures and all numbers with plain names; the numbers of each
    are in `scores` with its name, as `pope.mean_f1`.
    """
    timings = _timings(run.folder)
    first = next(iter(scores["benchmarks"].values())) if "benchmarks" in scores else scores
    seconds = training_seconds(run.folder)
    return ResultRow(
        method=run.method,
        seed=run.seed,
        accuracy=first["accuracy"],
        accuracy_by_category=first["accuracy_by_category"],
        agreement=first.get("agreement"),
        expected_calibration_error=first.get("expected_calibration_error"),
        metrics=metrics,
        seconds=seconds,
        run=run.folder,
        scores=_further_numbers({**first, **scores}),
        seconds_per_step=seconds / timings[-1]["step"],
        peak_memory_mib=_peak(timings, "peak_memory_mib"),
        peak_gpu_memory_mib=_peak(timings, "peak_gpu_memory_mib"),
        whole_seconds=whole_seconds,
    )


def training_seconds(run: Path) -> float:
    """Seconds of training in a run folder: the steps between two rows of timings.jsonl times the seconds of each."""
    rows = _timings(run)
    starts = [0, *(row["step"] for row in rows)]
    return float(sum((row["step"] - start) * row["seconds_per_step"] for row, start in zip(rows, starts, strict=False)))


def _timings(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / TIMINGS).read_text(encoding="utf-8").splitlines()]


def _peak(timings: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [row[name] for row in timings if name in row]
    return max(known) if known else None


def _further_numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the scores that have no field of their own in a row, a benchmark's official ones among them."""
    found = _numbers(_opened(scores), without=(*_OF_OWN_FIELD, *_OF_SETTINGS))
    for benchmark, own in scores.get("benchmarks", {}).items():
        numbers = _numbers(_opened(own), without=_OF_SETTINGS)
        found |= {f"{benchmark}.{name}": value for name, value in numbers.items()}
    return found


def _opened(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores with the official numbers under their plain names, and the distance as `matching.wasserstein_1`."""
    distance = {f"matching.{name}": value for name, value in scores.get("matching", {}).items()}
    return {**scores.get("official", {}), **distance, **scores}


def _numbers(values: Mapping[str, Any], without: Sequence[str]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in without
    }


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

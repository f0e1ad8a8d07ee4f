"""What the demo found, as rows, as results.csv and in two sentences that say what was measured, winning or not."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from betakd_pipe.ablate_rows import RESULTS, ResultRow
from betakd_stages.files import write_atomically

TEACHER = "teacher"


def teacher_rows(folder: Path, seeds: Sequence[int]) -> list[ResultRow]:
    """The teacher's own scores, one row per seed."""
    rows = []
    for seed in seeds:
        run = folder / f"seed-{seed}"
        scores = json.loads((run / "teacher-evaluation" / "scores.json").read_text(encoding="utf-8"))
        timings = (run / "teacher" / "timings.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append(
            ResultRow(
                method=TEACHER,
                seed=seed,
                accuracy=scores["accuracy"],
                accuracy_by_category=scores["accuracy_by_category"],
                agreement=100.0,
                expected_calibration_error=scores["expected_calibration_error"],
                metrics={},
                seconds=_training_seconds(timings),
                run=run / "teacher",
            )
        )
    return rows


def _training_seconds(timings: Sequence[str]) -> float:
    """Steps between two rows times the seconds of each, summed."""
    rows = [json.loads(line) for line in timings]
    starts = [0, *(row["step"] for row in rows)]
    return sum((row["step"] - start) * row["seconds_per_step"] for row, start in zip(rows, starts, strict=False))


def write_demo_results(out: Path, rows: Mapping[str, Sequence[ResultRow]]) -> None:
    """Write results.csv: one row per scenario, method and seed."""
    records = [
        {"scenario": scenario, **row.columns(out)} for scenario, of_scenario in rows.items() for row in of_scenario
    ]
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(out / RESULTS, text.getvalue())


def conclusions(rows: Mapping[str, Sequence[ResultRow]]) -> list[str]:
    """Two sentences on what was measured: what the cache is worth, and what the learned weights did."""
    return [_on_the_cache(rows), _on_the_weights(rows)]


def _mean(rows: Sequence[ResultRow], method: str) -> float:
    return statistics.fmean(row.accuracy for row in rows if row.method == method)


def _on_the_cache(rows: Mapping[str, Sequence[ResultRow]]) -> str:
    parts = [
        f"{name} {_mean(of, 'ce'):.1f} % with labels alone, {_mean(of, 'fkl-fixed-1'):.1f} % with the cached teacher, "
        f"{_mean(of, 'fkl-shuffled-teacher'):.1f} % with its records shuffled"
        for name, of in rows.items()
    ]
    cache_used = all(_mean(of, "fkl-fixed-1") > _mean(of, "fkl-shuffled-teacher") for of in rows.values())
    proof = "the control loses, so the cache is what helps" if cache_used else "THE CONTROL DID NOT LOSE: do not trust this run"
    return f"Test accuracy: {'; '.join(parts)}; {proof}."


def _on_the_weights(rows: Mapping[str, Sequence[ResultRow]]) -> str:
    parts = []
    for name, of in rows.items():
        tuned = _mean(of, "fkl-fixed-tuned")
        gaps = ", ".join(
            f"{method.removeprefix('fkl-')} {_mean(of, method) - tuned:+.1f}"
            for method in ("fkl-task", "fkl-instance", "fkl-instance-entropy")
        )
        parts.append(f"{name} {gaps}")
    return f"Beta-KD against the tuned fixed weight, in points: {'; '.join(parts)}."

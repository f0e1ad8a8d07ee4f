"""What the demo found, as rows, as results.csv and in two sentences that say what was measured, winning or not."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from betakd_pipe.ablation.rows import RESULTS, ResultRow, training_seconds, write_records

TEACHER = "teacher"


def teacher_rows(folder: Path, seeds: Sequence[int]) -> list[ResultRow]:
    """The teacher's own scores, one row per seed."""
    rows = []
    for seed in seeds:
        run = folder / f"seed-{seed}"
        scores = json.loads((run / "teacher-evaluation" / "scores.json").read_text(encoding="utf-8"))
        rows.append(
            ResultRow(
                method=TEACHER,
                seed=seed,
                accuracy=scores["accuracy"],
                accuracy_by_category=scores["accuracy_by_category"],
                agreement=100.0,
                expected_calibration_error=scores["expected_calibration_error"],
                metrics={},
                seconds=training_seconds(run / TEACHER),
                run=run / TEACHER,
            )
        )
    return rows


def write_demo_results(out: Path, rows: Mapping[str, Sequence[ResultRow]]) -> None:
    """Write results.csv: one row per scenario, method and seed."""
    records = [
        {"scenario": scenario, **row.columns(out)} for scenario, of_scenario in rows.items() for row in of_scenario
    ]
    write_records(out / RESULTS, records)


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
    joined = f"Test accuracy: {'; '.join(parts)}"
    if any(_mean(of, "fkl-fixed-1") <= _mean(of, "fkl-shuffled-teacher") for of in rows.values()):
        return f"{joined}: THE CONTROL DID NOT LOSE, so do not trust this run."
    if any(_mean(of, "fkl-fixed-1") <= _mean(of, "ce") for of in rows.values()):
        return f"{joined}: the control loses, but the teacher does not beat the labels everywhere."
    return f"{joined}: the teacher beats the labels and the control loses, so it is the cache that helps."


def _on_the_weights(rows: Mapping[str, Sequence[ResultRow]]) -> str:
    parts = []
    for name, of in rows.items():
        tuned = _mean(of, "fkl-fixed-tuned")
        gaps = ", ".join(
            f"{method.removeprefix('fkl-')} {_mean(of, method) - tuned:+.1f}"
            for method in ("fkl-task", "fkl-instance", "fkl-instance-entropy", "fkl-robust")
        )
        parts.append(f"{name} {gaps}")
    return f"Beta-KD against the tuned fixed weight, in points: {'; '.join(parts)}."

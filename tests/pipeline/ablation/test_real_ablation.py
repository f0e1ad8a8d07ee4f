"""An ablation of two methods from end to end, with tiny models and the command as a user calls it."""

import csv
from pathlib import Path

import pytest
from tests.world import World

from betakd_pipe.ablation.reading import read_ablation
from betakd_pipe.cli import main

SPEC = """
base: {training: {steps: 4, batch_size: 8, learning_rate: 1.0e-3, log_every_steps: 2, num_threads: 1}}
evaluate: {max_new_tokens: 2}
axes:
  loss: {fkl: {objective: {energies: [fkl]}}}
  weighting: {manual: {weighting: {name: manual, options: {num_batches: 2}}}, task: {weighting: {name: task}}}
table: {title: Two weightings, columns: {VQA-Acc: accuracy, s/step: seconds_per_step}, gain_over: manual}
"""


def test_two_methods_of_one_cache_end_in_the_tables(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    inputs = ["--student", str(world.student), "--cache", str(world.cache), "--data", world.data]
    command = ["ablate", str(tmp_path / "spec.yaml"), *inputs, "--benchmark", "digits?count=8", "--seeds", "0,1"]
    out = tmp_path / "out"
    assert main([*command, "--jobs", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Two weightings" in shown
    assert f"{out / 'results.csv'}: 4 rows; the table: {out / 'table.md'}" in shown
    _, rows = read_ablation(out)
    assert [(row.method, row.seed) for row in rows] == [
        (method, seed) for method in ("fkl-manual", "fkl-task") for seed in (0, 1)
    ]
    with (out / "table.csv").open(encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert float(first["VQA-Acc"]) == sum(row.accuracy for row in rows[:2]) / 2
    assert float(second["VQA-Acc gain"]) == pytest.approx(float(second["VQA-Acc"]) - float(first["VQA-Acc"]))
    assert all(row.peak_memory_mib and row.whole_seconds and row.whole_seconds > row.seconds > 0 for row in rows)
    assert rows[2].betas["fkl"] != 1.0

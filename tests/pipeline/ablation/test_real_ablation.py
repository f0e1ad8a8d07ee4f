"""An ablation of two methods from end to end, with tiny models and the command as a user calls it."""

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipeline.ablation.test_execution import wait_until
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


def test_sigterm_lets_a_student_end_its_step_and_leave_a_checkpoint(world: World, tmp_path: Path) -> None:
    spec = SPEC.replace("steps: 4", "steps: 100000")
    (tmp_path / "spec.yaml").write_text(spec, encoding="utf-8")
    inputs = ["--student", str(world.student), "--cache", str(world.cache), "--data", world.data]
    command = ["ablate", str(tmp_path / "spec.yaml"), *inputs, "--benchmark", "digits?count=8", "--jobs", "1"]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "betakd_pipe", *command, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    run = out / "seed-0" / "runs" / "fkl-manual"
    wait_until(lambda: (run / "metrics.jsonl").is_file(), timeout_s=120.0)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "betakd-pipe: stopped by SIGTERM with 0 of 2 runs done; the same command again goes on" in stderr
    assert list((run / "checkpoints").glob("checkpoint-*"))
    assert "which a checkpoint holds" in (run / "log.txt").read_text(encoding="utf-8")

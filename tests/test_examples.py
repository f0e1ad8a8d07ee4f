"""The examples run as they stand, on the tiny models."""

import subprocess
import sys
from pathlib import Path

from tests.world import World

from betakd_pipe.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_loop_learns_from_a_cache_and_saves_a_model_that_can_be_evaluated(world: World, tmp_path: Path) -> None:
    source = EXAMPLES / "own_loop.py"
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 60
    folders = {"student": world.student, "cache": world.cache, "data": world.data, "out": tmp_path / "model"}
    flags = [part for name, value in folders.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-W", "error", str(source), *flags, "--epochs", "6"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"epoch {number}" for number in range(1, 7)]
    objectives = [float(line.split("objective ")[1].partition(";")[0]) for line in lines]
    assert objectives[-1] < 0.8 * objectives[0]
    assert "weights: fkl " in lines[-1]
    scores = ["--out", str(tmp_path / "scores"), "--set", "max_new_tokens=2"]
    assert main(["evaluate", str(tmp_path / "model"), "--benchmark", "digits?count=8", *scores]) == 0

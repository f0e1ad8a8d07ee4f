"""The command with the real stages: the few things that no stand-in can show."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from betakd_stages.models.tiny import STUDENT_SIZE, save_tiny_model

COMMAND = Path(sys.executable).with_name("betakd-pipe")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "student", STUDENT_SIZE, seed=0)


def labels_only(student: Path, out: Path, num_steps: int) -> list[str]:
    """The arguments of a run without a teacher."""
    settings = {"steps": num_steps, "batch_size": 2, "checkpoint_every_steps": 10, "num_threads": 1}
    assignments = [f"training.{name}={value}" for name, value in settings.items()]
    flags = ["--student", str(student), "--data", "digits:transfer", "--energy", "ce", "--out", str(out)]
    return ["distill", *flags, *(part for assignment in assignments for part in ("--set", assignment))]


def test_ctrl_c_ends_with_130_and_says_how_to_go_on_and_the_run_does_go_on(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [str(COMMAND), *labels_only(student, out, 60)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + 120
    while not list(out.glob("checkpoints/checkpoint-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == (
        "betakd-pipe: interrupted; the same command again goes on from the last checkpoint"
    )
    assert "Traceback" not in stderr
    assert not (out / "model").exists()

    again = subprocess.run([str(COMMAND), *labels_only(student, out, 60)], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "student: 0/60" not in again.stderr
    assert (out / "model" / "config.json").is_file()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "the student learned from the labels alone" in card
    assert "| cross_entropy |" in card


def test_a_missing_student_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    done = subprocess.run(
        [str(COMMAND), *labels_only(absent, tmp_path / "run", 1)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"betakd-pipe: model folder {absent} does not exist: give a folder")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()

"""The command with the real stages: the few things that no stand-in can show."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from betakd_pipe.cli import main
from betakd_stages.distillation.checkpoints import CHECKPOINT_COMPLETE
from betakd_stages.models.tiny import STUDENT_SIZE, TEACHER_SIZE, save_tiny_model

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


def test_ctrl_c_ends_with_130_after_a_checkpoint_and_says_how_to_go_on_and_the_run_does_go_on(
    student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [str(COMMAND), *labels_only(student, out, 60)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + 120
    while not list(out.glob(f"checkpoints/checkpoint-*/{CHECKPOINT_COMPLETE}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    message = re.fullmatch(
        r"betakd-pipe: stopped by SIGINT after step (\d+) of 60, which a checkpoint holds; "
        "the same command again goes on from there",
        stderr.splitlines()[-1],
    )
    assert message
    step = message[1]
    assert (out / "checkpoints" / f"checkpoint-{step}" / CHECKPOINT_COMPLETE).is_file()
    assert "Traceback" not in stderr
    assert "Traceback" not in (out / "log.txt").read_text(encoding="utf-8")
    assert not (out / "model").exists()

    again = subprocess.run([str(COMMAND), *labels_only(student, out, 60)], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"student: {step}/60" in again.stderr
    assert (out / "model" / "config.json").is_file()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "the student learned from the labels alone" in card
    assert "| cross_entropy |" in card


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of 24 samples by an untrained teacher."""
    folder = tmp_path_factory.mktemp("cached")
    teacher = save_tiny_model(folder / "teacher", TEACHER_SIZE, seed=1)
    flags = ["--teacher", str(teacher), "--data", "digits:transfer", "--limit", "24", "--out", str(folder / "cache")]
    assert main(["cache-teacher", *flags, "--temperatures", "0.5,1,2"]) == 0
    return folder / "cache"


def distil(student: Path, cache: Path, out: Path, data: str, *more: str) -> int:
    """The exit code of two steps of distillation."""
    flags = ["--student", str(student), "--cache", str(cache), "--data", data, "--out", str(out), *more]
    return main(["distill", *flags, "--set", "training.steps=2", "--set", "training.batch_size=4"])


def refused(capsys: pytest.CaptureFixture[str], code: int, out: Path) -> str:
    """The one line of a call that must have ended with 2 and left nothing behind."""
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert not out.exists()
    return captured.err.removeprefix("betakd-pipe: ")


def test_a_cache_is_distilled_evaluated_and_left_alone_afterwards(
    student: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    subset = ["--on-mismatch", "drop", "--energy", "fkl", "--energy", "cosine_probs", "--feature", "vision"]
    assert distil(student, cache, out, "digits:transfer", *subset, "--weighting", "instance") == 0
    assert capsys.readouterr().out.startswith(f"{out}: 2 steps; objective ")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "weights_sha256: " in card
    assert "- beta-kd\n" in card
    assert "Distilled with betakd-pipe: the student learned from what a teacher makes of the data" in card
    assert distil(student, cache, out, "digits:transfer", *subset, "--weighting", "instance") == 0
    assert capsys.readouterr().out == f"{out}: already finished; nothing to do\n"
    assert main(["evaluate", str(out), "--benchmark", "digits", "--out", str(tmp_path / "scores")]) == 0
    assert "accuracy: " in capsys.readouterr().out


def test_a_run_with_adapters_leaves_them_beside_the_merged_model_and_names_them_in_its_card(
    student: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    adapter = ("--adapter", "lora", "--set", "adapter.targets=[q_proj, v_proj]")
    assert distil(student, cache, out, "digits:transfer", "--on-mismatch", "drop", *adapter) == 0
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert (out / "model" / "config.json").is_file()
    assert "adapter:\n  kind: lora\n  rank: 16" in (out / "README.md").read_text(encoding="utf-8")


def test_a_cache_that_is_all_there_is_said_to_be(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(cache.parent / "teacher")
    flags = ["--teacher", teacher, "--data", "digits:transfer", "--limit", "24", "--temperatures", "0.5,1,2"]
    assert main(["cache-teacher", *flags, "--out", str(cache)]) == 0
    assert capsys.readouterr().out.startswith(f"{cache}: 24 samples (all there before), ")


def test_a_missing_student_is_one_line_and_leaves_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, absent = tmp_path / "run", tmp_path / "absent"
    message = refused(capsys, distil(absent, cache, out, "digits:transfer"), out)
    assert message.startswith(f"model folder {absent} does not exist: give a folder")


def test_a_missing_cache_is_one_line_and_leaves_nothing(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, absent = tmp_path / "run", tmp_path / "absent"
    message = refused(capsys, distil(student, absent, out, "digits:transfer"), out)
    assert message.startswith(f"{absent} does not exist; give the path of a cache")


def test_a_cache_of_other_data_is_one_line_and_leaves_nothing(
    student: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    message = refused(capsys, distil(student, cache, out, "digits:test"), out)
    assert "the cache holds no such sample" in message
    assert f"{cache} was made from 'digits:transfer'" in message


def test_a_student_with_another_tokenizer_is_one_line_and_leaves_nothing(
    student: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "run", tmp_path / "other-student"
    shutil.copytree(student, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["yes"], vocabulary["no"] = vocabulary["no"], vocabulary["yes"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    message = refused(capsys, distil(other, cache, out, "digits:transfer", "--on-mismatch", "drop"), out)
    assert "tokenizer" in message

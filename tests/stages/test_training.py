"""Stage two through the real Trainer: the cache alone, same bytes for the same seed, resumed equals uninterrupted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.world import World

from betakd_stages.distillation.run import distill
from betakd_stages.errors import MismatchError, ModelError
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

TRAINING = {"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "log_every_steps": 3, "checkpoint_every_steps": 4}
TRAINING |= {"probe_samples": 0}  # which takes as long as such short training
INSTANCE: dict[str, Any] = {
    "objective": {"energies": ["fkl", "cosine_probs"], "features": ["vision", "prompt"]},
    "weighting": {"name": "instance", "learning_rate": 0.01},
}


def settings(world: World, **changes: Any) -> DistillSettings:
    common = {"student": str(world.student), "cache": str(world.cache), "data": world.data, "training": TRAINING}
    return DistillSettings.model_validate({**common, **INSTANCE, **changes})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {**load_file(run / "model" / "model.safetensors"), **load_file(run / "weighting.safetensors")}


def assert_same_run(left: Path, right: Path) -> None:
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
    assert weights(left).keys() == weights(right).keys()
    for name, value in weights(left).items():
        assert torch.equal(value, weights(right)[name]), name


class Interrupt(SilentProgress):
    """Ctrl-C after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self.left -= num_units
        if self.left == 0:
            raise KeyboardInterrupt


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world: World, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        distill(settings(world, seed=seed), tmp_path / name, progress=SilentProgress())
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() != (tmp_path / "c" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("step", [2, 4, 7, 11])
def test_a_run_interrupted_at_any_step_ends_as_the_uninterrupted_one(world: World, tmp_path: Path, step: int) -> None:
    distill(settings(world), tmp_path / "whole", progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        distill(settings(world), tmp_path / "cut", progress=Interrupt(step))
    assert not (tmp_path / "cut" / "model").exists()
    distill(settings(world), tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(world: World, tmp_path: Path) -> None:
    distill(settings(world), tmp_path / "whole", progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        distill(settings(world), tmp_path / "cut", progress=Interrupt(10))
    (tmp_path / "cut" / "checkpoints" / "checkpoint-8" / "complete").unlink()
    (tmp_path / "cut" / "checkpoints" / "checkpoint-8" / "student.safetensors").write_bytes(b"half")
    distill(settings(world), tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_one_batch_of_eight_equals_eight_batches_of_one(world: World, tmp_path: Path) -> None:
    """Learned per-sample weights included; answers differ in length, so a mean of means would show."""
    for reduction in ("sample", "token"):
        objective = {**INSTANCE["objective"], "reduction": reduction}
        for name, shape in (("8x1", {"batch_size": 8}), ("1x8", {"batch_size": 1, "accumulation": 8})):
            training = {**TRAINING, "learning_rate": 1e-4, "steps": 5, **shape}
            run = tmp_path / reduction / name
            distill(settings(world, objective=objective, training=training), run, progress=SilentProgress())
        left, right = (weights(tmp_path / reduction / name) for name in ("8x1", "1x8"))
        for name, value in left.items():
            torch.testing.assert_close(value, right[name], atol=2e-5, rtol=1e-3, msg=name)
        start = load_file(world.student / "model.safetensors")
        assert sum(float((left[name] - value).abs().sum()) for name, value in start.items()) > 1


def test_stage_two_never_opens_the_teacher_and_does_not_miss_it(world: World, tmp_path: Path) -> None:
    """Every file that a process opens is recorded; then the teacher's folder is removed and the numbers stay."""
    teacher = tmp_path / "teacher"
    shutil.copytree(world.teacher, teacher)
    cache = tmp_path / "cache"
    flags = ["--set", "training.steps=3", "--set", "training.num_threads=1", "--energy", "fkl", "--weighting", "task"]
    script = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from betakd_pipe.cli import main
code = main(sys.argv[2:])
print("\\n".join(path for path in opened if path.startswith(sys.argv[1])))
sys.exit(code)
"""

    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", script, str(teacher), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith(str(teacher))]

    assert run("cache-teacher", "--teacher", str(teacher), "--data", world.data, "--out", str(cache)) != []
    common = ["distill", "--student", str(world.student), "--cache", str(cache), "--data", world.data, *flags]
    assert run(*common, "--out", str(tmp_path / "before")) == []
    shutil.rmtree(teacher)
    assert run(*common, "--out", str(tmp_path / "after")) == []
    assert_same_run(tmp_path / "before", tmp_path / "after")


def test_the_saved_student_loads_with_transformers_alone(world: World, tmp_path: Path) -> None:
    distill(settings(world), tmp_path / "run", progress=SilentProgress())
    script = """
import sys
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
assert AutoTokenizer.from_pretrained(sys.argv[1]).chat_template
AutoImageProcessor.from_pretrained(sys.argv[1], backend="pil")
assert "betakd_stages" not in sys.modules
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run" / "model")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = load_file(tmp_path / "run" / "model" / "model.safetensors").keys()
    assert names == load_file(world.student / "model.safetensors").keys()


def test_what_is_frozen_stays_and_what_trains_moves(world: World, tmp_path: Path) -> None:
    before = load_file(world.student / "model.safetensors")
    training = {**TRAINING, "train_vision_tower": False, "train_projector": False}
    objective = {"energies": ["fkl"], "features": ["prompt"]}
    distill(settings(world, training=training, objective=objective), tmp_path / "run", progress=SilentProgress())
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, value in before.items():
        frozen = "vision_tower" in name or "multi_modal_projector" in name
        assert torch.equal(value, after[name]) == frozen, name


def test_metrics_name_every_term_and_weight(world: World, tmp_path: Path) -> None:
    summary = distill(settings(world), tmp_path / "run", progress=SilentProgress())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    for channel in ("fkl", "cosine_probs", "feature:vision", "feature:prompt"):
        for key in ("energy/{}", "weighted/{}", "beta/{}", "beta/{}/q10", "beta/{}/q50", "beta/{}/q90"):
            assert isinstance(rows[-1][key.format(channel)], float)
        assert -1 <= rows[-1][f"entropy_correlation/{channel}"] <= 1
    assert {"objective", "cross_entropy", "teacher_entropy", "learning_rate"} <= rows[-1].keys()
    timings = [json.loads(line) for line in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timings] == [row["step"] for row in rows]
    assert summary.final_metrics["objective"] == rows[-1]["objective"]


def test_a_finished_run_is_left_alone(world: World, tmp_path: Path) -> None:
    first = distill(settings(world), tmp_path / "run", progress=SilentProgress())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = distill(settings(world), tmp_path / "run", progress=SilentProgress())
    assert again.already_finished
    assert again.final_metrics == first.final_metrics
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_a_nan_stops_naming_the_samples_and_the_terms(world: World, tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(world.student)
    model.lm_head.weight.data[0, 0] = torch.nan
    shutil.copytree(world.student, tmp_path / "sick")
    model.save_pretrained(tmp_path / "sick")
    expected = r"not finite for 8 of 8 samples \(digits-transfer-.*\), because of cross_entropy, energy/fkl, energy/cos"
    with pytest.raises(MismatchError, match=expected):
        distill(settings(world, student=str(tmp_path / "sick")), tmp_path / "run", progress=SilentProgress())


def test_inputs_that_do_not_belong_together_leave_no_run_folder(world: World, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model folder .*absent does not exist"):
        distill(settings(world, student=str(tmp_path / "absent")), tmp_path / "run", progress=SilentProgress())
    with pytest.raises(MismatchError, match="its image is not the one the teacher saw"):
        distill(settings(world, data=world.data + "&pixel_noise=0.1"), tmp_path / "run", progress=SilentProgress())
    assert not (tmp_path / "run").exists()

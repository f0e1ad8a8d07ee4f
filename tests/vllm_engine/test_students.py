"""What a student learns does not depend on what ran its teacher."""

import json
from pathlib import Path

import pytest
from tests.vllm_engine.engine_world import EngineWorld, command

from betakd_stages.models.tiny import STUDENT_SIZE, save_tiny_model

TOLERANCE = 1e-3
"""Relative, of every loss term: caches that differ by 1e-5 nats, over 20 steps."""


@pytest.mark.parametrize(("weighting", "energy"), [("task", "fkl"), ("instance", "cosine_probs")])
def test_the_same_student_comes_out_of_both_caches(
    engine_world: EngineWorld, one_pass: Path, tmp_path: Path, weighting: str, energy: str
) -> None:
    student = save_tiny_model(tmp_path / "student", STUDENT_SIZE, seed=2)
    metrics = []
    for name, cache in (("hf", engine_world.exact_hf), ("vllm", one_pass)):
        out = tmp_path / name
        flags = ["--student", str(student), "--cache", str(cache), "--data", engine_world.data, "--out", str(out)]
        settings = ["--set", "training.steps=20", "--set", "training.learning_rate=0.003"]
        assert command("distill", *flags, "--energy", energy, "--weighting", weighting, *settings) == 0
        metrics.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    terms = [name for name, value in metrics[0][-1].items() if isinstance(value, float) and "second" not in name]
    assert len(terms) > 5
    for left, right in zip(*metrics, strict=True):
        for name in terms:
            if name in left:
                assert right[name] == pytest.approx(left[name], rel=TOLERANCE, abs=TOLERANCE), name


def test_a_student_learns_from_log_probabilities_alone(
    engine_world: EngineWorld, prompt_logprobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = save_tiny_model(tmp_path / "student", STUDENT_SIZE, seed=2)
    flags = ["--student", str(student), "--cache", str(prompt_logprobs), "--data", engine_world.data]
    steps = ["--set", "training.steps=3", "--weighting", "task"]
    assert command("distill", *flags, "--out", str(tmp_path / "run"), "--energy", "fkl", *steps) == 0
    capsys.readouterr()
    for energy, message in (("mse_logits", "logit"), ("ctkd", "temperature")):
        assert command("distill", *flags, "--out", str(tmp_path / energy), "--energy", energy, *steps) == 2
        assert message in capsys.readouterr().err

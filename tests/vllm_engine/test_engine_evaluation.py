"""Benchmarks answered by vLLM: the answers and their confidences are those of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.vllm_engine.engine_world import EngineWorld, command

TOLERANCE = 1e-4


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_vllm_answers_as_transformers_does_and_is_as_sure(engine_world: EngineWorld, tmp_path: Path) -> None:
    for backend in ("hf", "vllm"):
        asked = ("--benchmark", "digits?count=24", "--set", "batch_size=10", "--backend", backend)
        assert command("evaluate", str(engine_world.teacher), *asked, "--out", str(tmp_path / backend)) == 0
    ours, theirs = rows(tmp_path / "hf"), rows(tmp_path / "vllm")
    assert len(theirs) == 24
    assert [row["answer"] for row in theirs] == [row["answer"] for row in ours]
    assert len({row["answer"] for row in ours}) > 5
    confidences = [row["confidence"] for row in ours]
    assert [row["confidence"] for row in theirs] == pytest.approx(confidences, rel=TOLERANCE, abs=1e-9)
    scores = json.loads((tmp_path / "vllm" / "scores.json").read_text(encoding="utf-8"))
    assert scores["backend"] == "vllm"

"""Families beside LLaVA in vLLM: one with a processor of its own, and LLaVA-Qwen with rows beyond its tokenizer."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.stages.models.families import FAMILIES
from tests.stages.models.parts import save_clip, save_language_model
from tests.stages.photos import NUM_SAMPLES, write_photos
from tests.vllm_engine.engine_world import assert_same_caches, command

from betakd_cache import open_cache
from betakd_stages.models.building import build_model

WIDTH = 64
"""Two heads of 32: vLLM's attention on a CPU has no smaller ones."""
NUM_ROWS = 320
pytestmark = pytest.mark.usefixtures("engine_world")  # which sets the environment


def save_llava_qwen(folder: Path) -> Path:
    language = save_language_model(folder / "language", seed=1, width=WIDTH, num_rows=NUM_ROWS)
    return build_model(language, save_clip(folder / "tower"), folder / "model").folder


def save_qwen2_5_vl(folder: Path) -> Path:
    return FAMILIES["qwen2_5_vl"].save(folder, seed=1, width=WIDTH, num_rows=NUM_ROWS)


def save_qwen3_vl(folder: Path) -> Path:
    return FAMILIES["qwen3_vl"].save(folder, seed=1, width=WIDTH, num_rows=NUM_ROWS)


@pytest.mark.parametrize("save", [save_llava_qwen, save_qwen2_5_vl, save_qwen3_vl])
def test_vllm_and_transformers_give_the_same_cache(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    teacher = save(tmp_path / "teacher")
    data = write_photos(tmp_path)
    for backend in ("hf", "vllm"):
        inputs = ["--teacher", str(teacher), "--data", data, "--out", str(tmp_path / backend)]
        assert command("cache-teacher", *inputs, "--backend", backend, "--set", "exact=true", "--top-k", "12") == 0
    assert_same_caches(tmp_path / "hf", tmp_path / "vllm")
    cache = open_cache(tmp_path / "vllm")
    assert cache.manifest.vocabulary_size < NUM_ROWS
    assert sum("vision" in cache.record(index).features for index in range(NUM_SAMPLES)) == NUM_SAMPLES * 2 // 3

"""Tests with a real engine of vLLM, run by `make test-vllm` in an environment that has one."""

import os
from pathlib import Path

import pytest
from tests.vllm_engine.engine_world import EngineWorld, command, write_conversations

from betakd_stages.models.tiny import TinySize, save_tiny_model

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
}
TEACHER = TinySize(width=64, vision_layers=1, language_layers=2, head_width=32)
"""vLLM's attention on the CPU takes heads from 32 on."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder; warnings of vLLM and of what it brings are not ours to mend."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def engine_world(tmp_path_factory: pytest.TempPathFactory) -> EngineWorld:
    """A teacher, samples of every kind, and the exact cache that transformers makes of them."""
    os.environ.update(ENVIRONMENT)
    folder = tmp_path_factory.mktemp("engine")
    teacher = save_tiny_model(folder / "teacher", TEACHER, seed=1)
    data = write_conversations(folder / "data")
    world = EngineWorld(folder, teacher, data)
    assert command("cache-teacher", *world.arguments(world.exact_hf)) == 0
    return world


@pytest.fixture(scope="session")
def one_pass(engine_world: EngineWorld) -> Path:
    """The exact cache of the same samples by backend vllm, prompts cut into chunks."""
    out = engine_world.folder / "one-pass"
    chunked = ("--set", "vllm.max_num_batched_tokens=64")
    assert command("cache-teacher", *engine_world.arguments(out), "--backend", "vllm", *chunked) == 0
    return out


@pytest.fixture(scope="session")
def prompt_logprobs(engine_world: EngineWorld) -> Path:
    """The exact cache of the same samples by backend vllm_prompt_logprobs."""
    out = engine_world.folder / "prompt-logprobs"
    stable = ("--backend", "vllm_prompt_logprobs", "--temperatures", "1", "--features", "")
    assert command("cache-teacher", *engine_world.arguments(out, "--temperatures"), *stable) == 0
    return out

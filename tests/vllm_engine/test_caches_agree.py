"""What vLLM writes is what transformers writes."""

import json
from pathlib import Path

import pytest
from tests.vllm_engine.engine_world import EngineWorld, assert_same_caches, command

from betakd_cache import diff, open_cache


def test_one_pass_writes_the_same_ids_and_every_statistic_and_feature(
    engine_world: EngineWorld, one_pass: Path
) -> None:
    assert_same_caches(engine_world.exact_hf, one_pass)
    assert open_cache(one_pass).manifest.statistics == open_cache(engine_world.exact_hf).manifest.statistics


def test_prompt_log_probabilities_give_the_same_ids_and_probabilities(
    engine_world: EngineWorld, prompt_logprobs: Path
) -> None:
    assert_same_caches(engine_world.exact_hf, prompt_logprobs, everything=False)
    assert open_cache(prompt_logprobs).manifest.statistics == ("entries", "gold_gap", "tail_lse")


def test_cache_diff_says_so(
    engine_world: EngineWorld, one_pass: Path, prompt_logprobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cache in (one_pass, prompt_logprobs):
        found = diff(engine_world.exact_hf, cache)
        assert (found.num_only_left, found.num_only_right, found.num_other_tokens) == (0, 0, 0)
        assert found.id_agreement > 0.99
        assert found.largest_log_prob_difference < 1e-4
        assert found.largest_feature_difference < 1e-4
        capsys.readouterr()
        assert command("cache", "diff", str(engine_world.exact_hf), str(cache), "--json") == 0
        assert json.loads(capsys.readouterr().out)["num_only_left"] == 0


def test_the_manifest_names_backend_and_versions(engine_world: EngineWorld, one_pass: Path) -> None:
    mine, other = (open_cache(path).manifest.identity for path in (one_pass, engine_world.exact_hf))
    assert mine["teacher"]["backend"] == "vllm"
    assert mine["teacher"]["vllm"].startswith("0.")
    assert mine["teacher"]["weights_sha256"] == other["teacher"]["weights_sha256"]
    assert {key: value for key, value in mine.items() if key != "teacher"} == {
        key: value for key, value in other.items() if key != "teacher"
    }


def test_two_workers_with_an_engine_each_write_the_same_cache(engine_world: EngineWorld, one_pass: Path) -> None:
    out = engine_world.folder / "two-workers"
    arguments = [*engine_world.arguments(out), "--backend", "vllm", "--workers", "2"]
    assert command("cache-teacher", *arguments, "--set", "vllm.gpu_memory_utilization=0.3") == 0
    assert_same_caches(one_pass, out, tolerance=1e-5)


def test_two_processes_that_share_a_teacher_write_the_same_cache(engine_world: EngineWorld, one_pass: Path) -> None:
    out = engine_world.folder / "tensor-parallel"
    arguments = [*engine_world.arguments(out), "--backend", "vllm", "--set", "vllm.tensor_parallel_size=2"]
    assert command("cache-teacher", *arguments) == 0
    assert_same_caches(one_pass, out)

"""Answers that vLLM writes: greedy ones are those of transformers, samples depend on nothing beside them."""

from pathlib import Path

from tests.vllm_engine.engine_world import EngineWorld, assert_same_caches, command

from betakd_cache import open_cache

WRITING = ("--targets", "data,generate", "--set", "generation.max_new_tokens=8")
SAMPLING = ("--set", "generation.temperature=1.5", "--set", "generation.top_p=0.95", "--set", "generation.seed=4")


def written(path: Path) -> dict[str, tuple[list[int], object]]:
    """The ids of every record of answers that the teacher wrote, and the lengths of these answers."""
    cache = open_cache(path)
    records = map(cache.record, range(len(cache)))
    return {
        record.sample_id: (record.token_ids.tolist(), record.row["answer_lengths"])
        for record in records
        if record.sample_id.endswith("#generated")
    }


def test_greedy_answers_and_what_is_cached_about_them_are_those_of_transformers(
    engine_world: EngineWorld, tmp_path: Path
) -> None:
    for backend in ("hf", "vllm"):
        arguments = engine_world.arguments(tmp_path / backend)
        assert command("cache-teacher", *arguments, *WRITING, "--backend", backend) == 0
    assert_same_caches(tmp_path / "hf", tmp_path / "vllm")
    assert len(written(tmp_path / "vllm")) == 20
    assert {str(lengths).count(",") for _, lengths in written(tmp_path / "vllm").values()} == {0, 1}


def test_samples_depend_on_seed_and_sample_and_not_on_what_runs_beside_them(
    engine_world: EngineWorld, tmp_path: Path
) -> None:
    for limit in ("12", "4"):
        arguments = [*engine_world.arguments(tmp_path / limit), "--backend", "vllm", "--limit", limit]
        assert command("cache-teacher", *arguments, *WRITING, *SAMPLING) == 0
    some, all_of_them = written(tmp_path / "4"), written(tmp_path / "12")
    assert len(some) == 4
    assert some == {key: all_of_them[key] for key in some}
    assert len({tuple(ids) for ids, _ in all_of_them.values()}) == 12
    assert max(max(ids) for ids, _ in all_of_them.values()) < 34

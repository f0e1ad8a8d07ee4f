"""Deriving, merging, exporting, comparing and describing caches, each against the definitions."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
from tests.cache.records import IDENTITY, assert_equal_records, make_records, record_of, simulated_logits, write_cache

from betakd_cache import CacheError, TeacherCache, TokenRule, derive, diff, export, info, merge, open_cache, verify

VOCABULARY = 500
COMPACT = TokenRule(top_k=30, top_p=0.999, temperatures=(0.5, 1.0, 2.0))
EXACT = dataclasses.replace(COMPACT, exact=True)


def logits_and_gold(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = simulated_logits(generator, 40, VOCABULARY)
    gold = np.where(generator.random(40) < 0.6, logits.argmax(axis=1), generator.integers(0, VOCABULARY, 40))
    return logits, gold


def caches_of(tmp_path: Path, rule: TokenRule, num_samples: int = 9, **settings: Any) -> TeacherCache:
    return write_cache(tmp_path, make_records(num_samples, VOCABULARY, rule), rule, VOCABULARY, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 10}, {"top_k": 1}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.8}, {"temperatures": (1.0,)},
     {"top_k": 7, "temperatures": (0.5, 2.0)}],
)  # fmt: skip
def test_a_derived_cache_equals_the_one_that_the_teacher_would_have_written(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    narrow = dataclasses.replace(EXACT, **settings)
    samples = [logits_and_gold(seed) for seed in range(3)]
    write_cache(
        tmp_path / "wide", [record_of(str(n), *pair, EXACT) for n, pair in enumerate(samples)], EXACT, VOCABULARY
    )
    found = derive(tmp_path / "wide", tmp_path / "derived", **settings)
    cache = open_cache(tmp_path / "derived")
    for number, pair in enumerate(samples):
        expected, derived = record_of(str(number), *pair, narrow), cache.record(number)
        for name in ("token_ids", "entry_counts", "ids", "gaps", "gold_gap", "logit_max"):
            np.testing.assert_array_equal(getattr(derived, name), getattr(expected, name), err_msg=name)
        np.testing.assert_allclose(derived.tail_lse, expected.tail_lse, rtol=1e-6, atol=1e-5)
        assert derived.tail_energy is not None
        assert expected.tail_energy is not None
        np.testing.assert_allclose(derived.tail_energy, expected.tail_energy, rtol=1e-5, atol=1e-5)
    assert found.num_entries == cache.manifest.counts.num_entries <= found.source_entries
    assert cache.manifest.token_rule == narrow
    assert verify(tmp_path / "derived").ok


def test_deriving_from_a_compact_cache_copies_the_stored_codes_of_what_it_keeps(tmp_path: Path) -> None:
    source = caches_of(tmp_path / "wide", COMPACT, shard_samples=4)
    derive(tmp_path / "wide", tmp_path / "derived", top_k=6)
    before, after = source.batch(range(9)).decode(), open_cache(tmp_path / "derived").batch(range(9)).decode()
    for token in range(len(before.token_ids)):
        gaps = dict(zip(before.ids[token], before.gaps[token], strict=True))
        count = after.entry_counts[token]
        assert count == min(before.entry_counts[token], 6)
        assert before.token_ids[token] in after.ids[token, :count]
        assert [gaps[entry] for entry in after.ids[token, :count]] == after.gaps[token, :count].tolist()
    np.testing.assert_array_equal(before.gold_gap, after.gold_gap)


def test_deriving_the_same_rule_changes_nothing(tmp_path: Path) -> None:
    source = caches_of(tmp_path / "wide", COMPACT, shard_samples=4)
    derive(tmp_path / "wide", tmp_path / "same")
    same = open_cache(tmp_path / "same")
    for index in range(9):
        assert_equal_records(same.record(index), source.record(index))
    assert same.rows(["category", "num_tokens"]).equals(source.rows(["category", "num_tokens"]))


def test_a_derived_subset_holds_the_samples_asked_for_and_resumes(tmp_path: Path) -> None:
    source = caches_of(tmp_path / "wide", COMPACT, shard_samples=2)
    wanted = ["train/1", "train/6", "train/7"]
    for _ in range(2):
        derive(tmp_path / "wide", tmp_path / "subset", sample_ids=wanted)
    subset = open_cache(tmp_path / "subset")
    assert subset.sample_ids.to_pylist() == wanted
    assert_equal_records(subset.record(1), source.record(6))


def test_the_rows_of_a_derived_cache_say_what_it_keeps(tmp_path: Path) -> None:
    wide = caches_of(tmp_path / "wide", EXACT).rows(["kept_mass", "entropy"]).to_pydict()
    derive(tmp_path / "wide", tmp_path / "derived", top_k=2)
    derived = open_cache(tmp_path / "derived").rows(["kept_mass", "entropy"]).to_pydict()
    assert all(after <= before for before, after in zip(wide["kept_mass"], derived["kept_mass"], strict=True))
    np.testing.assert_allclose(derived["entropy"], wide["entropy"], rtol=1e-4)


@pytest.mark.parametrize("settings", [{"top_k": 31}, {"top_p": 1.0}, {"temperatures": (1.0, 4.0)}])
def test_more_than_the_source_holds_cannot_be_derived(tmp_path: Path, settings: dict[str, Any]) -> None:
    caches_of(tmp_path / "wide", COMPACT)
    with pytest.raises(
        CacheError, match=r"keeps top_k 30, top_p 0.999 .*; derive the same or less, or run the teacher"
    ):
        derive(tmp_path / "wide", tmp_path / "derived", **settings)


def test_top_p_at_a_temperature_without_a_tail_cannot_be_derived(tmp_path: Path) -> None:
    caches_of(tmp_path / "wide", dataclasses.replace(COMPACT, top_p_temperature=3.0))
    with pytest.raises(CacheError, match=r"measures top_p at temperature 3.0 but holds the tail at \(0.5, 1.0, 2.0\)"):
        derive(tmp_path / "wide", tmp_path / "derived", top_p=0.5)


def test_a_merged_cache_holds_the_samples_of_all(tmp_path: Path) -> None:
    records = make_records(9, VOCABULARY, COMPACT)
    whole = write_cache(tmp_path / "whole", records, COMPACT, VOCABULARY)
    for name, part in (("a", records[:5]), ("b", records[5:])):
        write_cache(tmp_path / name, part, COMPACT, VOCABULARY, identity=IDENTITY | {"dataset": name}, shard_samples=2)
    found = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    merged = open_cache(tmp_path / "merged")
    assert (found.num_samples, found.num_shards) == (9, 5)
    assert merged.manifest.identity == IDENTITY | {"dataset": ["a", "b"]}
    for index in range(9):
        assert_equal_records(merged.record(index), whole.record(index))
    for name, statistics in whole.manifest.feature_statistics.items():
        np.testing.assert_allclose(merged.manifest.feature_statistics[name].deviation, statistics.deviation)
    assert verify(tmp_path / "merged").ok


def test_caches_that_differ_or_overlap_are_not_merged(tmp_path: Path) -> None:
    caches_of(tmp_path / "a", COMPACT)
    caches_of(tmp_path / "b", COMPACT)
    caches_of(tmp_path / "c", dataclasses.replace(COMPACT, top_k=3))
    with pytest.raises(CacheError, match=r"sample 'train/0' is in .*a and in .*b; derive one without it first"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    with pytest.raises(
        CacheError, match=r"a has token_rule.top_k = 30, .*c has 3; merge only caches that differ in noth"
    ):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "merged")
    with pytest.raises(CacheError, match="there is no cache to merge; name at least one"):
        merge([], tmp_path / "merged")


def test_an_exported_copy_opens_with_datasets_and_polars_and_holds_the_stored_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    import datasets

    cache = caches_of(tmp_path / "cache", COMPACT, shard_samples=4)
    found = export(tmp_path / "cache", tmp_path / "copy")
    assert (found.num_files, found.num_samples) == (3, 9)
    loaded = datasets.load_dataset(str(tmp_path / "copy"), split="train", cache_dir=str(tmp_path / "hub"))
    assert loaded["sample_id"] == cache.sample_ids.to_pylist()
    for index, row in enumerate(polars.read_parquet(tmp_path / "copy" / "data" / "*.parquet").to_dicts()):
        batch = cache.batch([index])
        assert row["sample_id"] == loaded[index]["sample_id"]
        for name, array in batch.arrays.items():
            assert row[name.replace("/", "_")] == array.tobytes() == loaded[index][name.replace("/", "_")]
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "| `gap_top` | uint8, little-endian | per token | 3 |" in card
    with pytest.raises(CacheError, match="copy is not empty; export to a new or an empty folder"):
        export(tmp_path / "cache", tmp_path / "copy")


def test_a_cache_does_not_differ_from_itself(tmp_path: Path) -> None:
    caches_of(tmp_path / "a", EXACT)
    found = diff(tmp_path / "a", tmp_path / "a")
    assert (found.num_shared, found.num_only_left, found.num_only_right, found.num_other_tokens) == (9, 0, 0, 0)
    assert (found.id_agreement, found.top_agreement, found.largest_log_prob_difference) == (1, 1, 0)


def test_a_difference_is_that_of_the_log_probabilities(tmp_path: Path) -> None:
    rule = dataclasses.replace(EXACT, top_k=4, top_p=1.0)
    logits, gold = logits_and_gold(1)
    gold = logits.argmax(axis=1)
    changed = logits.copy()
    changed[7] -= 0.5 * np.eye(VOCABULARY)[np.argsort(-logits[7])[1]]
    for name, values in (("a", logits), ("b", changed)):
        write_cache(tmp_path / name, [record_of("s", values, gold, rule)], rule, VOCABULARY)
    log_p, log_q = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in (logits, changed))
    kept = [set(np.argsort(-z[7])[:4]) for z in (logits, changed)]
    shared = list(kept[0] & kept[1])
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.largest_log_prob_difference == pytest.approx(np.abs(log_p - log_q)[7, shared].max(), abs=1e-5)
    assert found.id_agreement == pytest.approx((39 + len(shared) / len(kept[0] | kept[1])) / 40)
    assert found.temperature == 1.0


def test_compact_storage_moves_log_probabilities_by_little(tmp_path: Path) -> None:
    caches_of(tmp_path / "exact", EXACT)
    caches_of(tmp_path / "compact", COMPACT)
    found = diff(tmp_path / "exact", tmp_path / "compact")
    assert found.id_agreement == 1
    assert 0 < found.mean_log_prob_difference < 0.05


def test_caches_of_other_tokens_vocabularies_or_temperatures_are_told_apart(tmp_path: Path) -> None:
    record = make_records(1, VOCABULARY, COMPACT)[0]
    write_cache(tmp_path / "a", [record], COMPACT, VOCABULARY)
    other = dataclasses.replace(make_records(1, VOCABULARY, COMPACT, seed=4)[0])
    write_cache(tmp_path / "b", [other], COMPACT, VOCABULARY)
    assert diff(tmp_path / "a", tmp_path / "b").num_other_tokens == 1
    write_cache(tmp_path / "c", [record], COMPACT, VOCABULARY + 1)
    with pytest.raises(CacheError, match=r"has a vocabulary of 500, .* of 501; compare caches of one vocabulary"):
        diff(tmp_path / "a", tmp_path / "c")
    hot = dataclasses.replace(COMPACT, temperatures=(3.0,))
    write_cache(tmp_path / "d", make_records(1, VOCABULARY, hot), hot, VOCABULARY)
    with pytest.raises(CacheError, match=r"holds temperatures .*; compare caches that share one"):
        diff(tmp_path / "a", tmp_path / "d")


def test_info_counts_what_the_files_hold(tmp_path: Path) -> None:
    cache = caches_of(tmp_path / "cache", COMPACT, shard_samples=4)
    found = info(tmp_path / "cache")
    rows = cache.rows().to_pydict()
    assert found.counts == cache.manifest.counts
    assert found.counts.size_bytes == sum(
        file.stat().st_size
        for file in (tmp_path / "cache").rglob("*")
        if file.is_file() and "shard-" in file.as_posix()
    )
    assert found.bytes_per_token == found.counts.size_bytes / found.counts.num_tokens
    expected, _ = np.histogram(rows["entropy"], [0, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, np.inf])
    assert found.entropy.counts == tuple(expected)
    assert found.entropy.mean == pytest.approx(np.mean(rows["entropy"]))
    assert sum(found.kept_mass.counts) == 9


def test_every_result_is_plain_json(tmp_path: Path) -> None:
    caches_of(tmp_path / "a", COMPACT)
    results: list[Any] = [
        info(tmp_path / "a"),
        verify(tmp_path / "a"),
        diff(tmp_path / "a", tmp_path / "a"),
        derive(tmp_path / "a", tmp_path / "b", top_k=2),
        merge([tmp_path / "a"], tmp_path / "c"),
        export(tmp_path / "a", tmp_path / "d"),
    ]
    for result in results:
        fields = result.to_json()
        assert json.loads(json.dumps(fields, allow_nan=False)) == json.loads(json.dumps(fields))


def test_exported_parquet_carries_no_list_column(tmp_path: Path) -> None:
    caches_of(tmp_path / "cache", COMPACT)
    export(tmp_path / "cache", tmp_path / "copy")
    schema = pq.read_schema(next((tmp_path / "copy" / "data").iterdir()))
    assert not any("list" in str(kind) for kind in schema.types)

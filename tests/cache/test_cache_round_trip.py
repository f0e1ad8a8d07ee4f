"""What goes in comes out: exactly in an exact cache, within the format's stated precision in a compact one."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.cache.records import assert_equal_records, make_records, record_of, stored_by_definition, write_cache

from betakd_cache import CacheError, TeacherRecord, TokenRule, open_cache

EXACT = TokenRule(top_k=40, top_p=0.99, exact=True)
COMPACT = TokenRule(top_k=40, top_p=0.99)


def expected_gaps(record: TeacherRecord) -> np.ndarray:
    """Per entry: gold from float16, the others as the format's definition stores them."""
    expected = []
    start = 0
    for count, gold in zip(record.entry_counts, record.token_ids, strict=True):
        gaps = record.gaps[start : start + count].astype(np.float64)
        token = np.array(stored_by_definition(gaps.tolist()))
        is_gold = record.ids[start : start + count] == gold
        token[is_gold] = gaps[is_gold].astype(np.float16)
        expected += token.tolist()
        start += count
    return np.array(expected)


@pytest.mark.parametrize("vocabulary_size", [300, 32_000, 65_536, 65_537, 151_936, 200_000])
def test_an_exact_cache_returns_every_record_bit_for_bit(tmp_path: Path, vocabulary_size: int) -> None:
    records = make_records(7, vocabulary_size, EXACT)
    cache = write_cache(tmp_path / "cache", records, EXACT, vocabulary_size, shard_samples=3)
    assert len(cache) == 7
    for index, record in enumerate(records):
        assert_equal_records(cache.record(index), record)


def test_an_exact_cache_can_keep_the_whole_vocabulary(tmp_path: Path) -> None:
    rule = TokenRule(top_k=300, top_p=1.0, exact=True)
    records = make_records(3, 300, rule)
    cache = write_cache(tmp_path / "cache", records, rule, 300)
    assert (records[0].entry_counts == 300).all()
    assert np.isneginf(records[0].tail_lse).all()
    for index, record in enumerate(records):
        assert_equal_records(cache.record(index), record)


@pytest.mark.parametrize("vocabulary_size", [300, 32_000, 65_536, 65_537, 151_936, 200_000])
def test_a_compact_cache_returns_ids_exactly_and_numbers_within_their_stored_precision(
    tmp_path: Path, vocabulary_size: int
) -> None:
    records = make_records(7, vocabulary_size, COMPACT)
    cache = write_cache(tmp_path / "cache", records, COMPACT, vocabulary_size, shard_samples=3)
    for index, record in enumerate(records):
        found = cache.record(index)
        for name in ("token_ids", "entry_counts", "ids", "tail_lse", "logit_max", "logit_mean"):
            np.testing.assert_array_equal(getattr(found, name), getattr(record, name), err_msg=name)
        for name in ("gold_gap", "tail_energy", "logit_std"):
            np.testing.assert_array_equal(getattr(found, name), getattr(record, name).astype(np.float16), err_msg=name)
        np.testing.assert_allclose(found.gaps, expected_gaps(record), rtol=1e-6)
        assert found.row == record.row
        assert found.features.keys() == record.features.keys()
        for name, feature in record.features.items():
            np.testing.assert_array_equal(found.features[name], feature)


def test_a_gold_token_that_the_teacher_finds_hopeless_keeps_its_gap(tmp_path: Path) -> None:
    logits = np.array([[0.0, -1.0, -2.0, -3.0, -5.0, -80.0]])
    record = record_of("a", logits, np.array([5]), TokenRule(top_k=6, top_p=0.9))
    cache = write_cache(tmp_path / "cache", [record], TokenRule(top_k=6, top_p=0.9), 6)
    assert cache.record(0).gaps[-1] == 80.0


def test_a_single_kept_entry_is_the_gold_one_with_its_own_gap(tmp_path: Path) -> None:
    rule = TokenRule(top_k=1)
    record = record_of("a", np.array([[0.0, -1.5, -2.0]]), np.array([1]), rule)
    cache = write_cache(tmp_path / "cache", [record], rule, 3)
    assert cache.record(0).ids.tolist() == [1]
    assert cache.record(0).gaps.tolist() == [1.5]


def test_decoding_pads_with_infinite_gaps_and_says_which_sample_a_token_belongs_to(tmp_path: Path) -> None:
    records = make_records(9, 300, COMPACT)
    cache = write_cache(tmp_path / "cache", records, COMPACT, 300, shard_samples=4)
    order = [8, 0, 5, 0]
    batch = cache.batch(order).decode()
    chosen = [cache.record(index) for index in order]
    assert batch.sample_index.tolist() == [row for row, record in enumerate(chosen) for _ in record.token_ids]
    np.testing.assert_array_equal(batch.entry_counts, np.concatenate([record.entry_counts for record in chosen]))
    kept = np.arange(batch.ids.shape[1]) < batch.entry_counts[:, None]
    np.testing.assert_array_equal(np.isfinite(batch.gaps), kept)
    np.testing.assert_array_equal(batch.ids[kept], np.concatenate([record.ids for record in chosen]))
    np.testing.assert_array_equal(batch.gaps[kept], np.concatenate([record.gaps for record in chosen]))
    for name in ("token_ids", "gold_gap", "tail_lse", "tail_energy", "logit_max", "logit_mean", "logit_std"):
        np.testing.assert_array_equal(getattr(batch, name), np.concatenate([getattr(r, name) for r in chosen]), name)
    assert batch.present["vision"].tolist() == [True, False, True, False]
    assert batch.present["prompt"].all()
    assert not batch.features["vision"][1].any()
    np.testing.assert_array_equal(batch.features["vision"][2], records[5].features["vision"])


def test_a_batch_of_no_samples_decodes_to_nothing(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", make_records(2, 300, COMPACT), COMPACT, 300)
    batch = cache.batch([]).decode()
    assert batch.ids.shape == (0, 0)
    assert batch.features["vision"].shape == (0, 12)


def test_an_index_out_of_range_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", make_records(2, 300, COMPACT), COMPACT, 300)
    for index in (-1, 2):
        with pytest.raises(IndexError, match="the cache has 2 samples"):
            cache.batch([0, index])


def test_batches_and_caches_survive_pickling(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", make_records(5, 300, COMPACT), COMPACT, 300)
    batch = cache.batch([3, 1])
    for copy in (pickle.loads(pickle.dumps(batch)), pickle.loads(pickle.dumps(cache)).batch([3, 1])):  # noqa: S301
        np.testing.assert_array_equal(copy.decode().gaps, batch.decode().gaps)


def test_samples_are_found_by_id_and_a_missing_one_is_named(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", make_records(9, 300, COMPACT), COMPACT, 300, shard_samples=2)
    assert cache.sample_ids.to_pylist() == [f"train/{number}" for number in range(9)]
    assert cache.index_of(["train/7", "train/0", "train/7"]).tolist() == [7, 0, 7]
    with pytest.raises(CacheError, match=r"does not hold sample 'train/99' \(1 of 2 are missing\); use the data"):
        cache.index_of(["train/1", "train/99"])


def test_a_cache_without_moments_and_features_says_so(tmp_path: Path) -> None:
    full = make_records(2, 300, COMPACT, feature_sizes={})
    bare = [
        TeacherRecord(**{name: getattr(r, name) for name in TeacherRecord.__slots__ if not name.startswith("logit_")})
        for r in full
    ]
    cache = write_cache(tmp_path / "cache", bare, COMPACT, 300, feature_sizes={}, logit_moments=False)
    assert cache.manifest.statistics == ("entries", "gold_gap", "tail_lse", "tail_energy")
    assert cache.batch([0]).decode().logit_mean is None
    assert cache.record(1).logit_max is None


def test_rows_carry_the_teachers_means_at_temperature_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(4, 50)) * 3
    gold = np.array([3, 8, 1, 49])
    rule = TokenRule(top_k=10, top_p=0.9, temperatures=(1.0, 2.0), exact=True)
    cache = write_cache(tmp_path / "cache", [record_of("a", logits, gold, rule)], rule, 50)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = cache.rows().to_pylist()[0]
    record = cache.record(0)
    kept = np.zeros((4, 50), bool)
    kept[np.repeat(np.arange(4), record.entry_counts), record.ids] = True
    assert found["sample_id"] == "a"
    assert found["num_tokens"] == 4
    assert found["gold_nll"] == pytest.approx(-log_p[np.arange(4), gold].mean(), abs=1e-5)
    assert found["entropy"] == pytest.approx(-(np.exp(log_p) * log_p).sum(axis=1).mean(), abs=1e-5)
    assert found["kept_mass"] == pytest.approx((np.exp(log_p) * kept).sum(axis=1).mean(), abs=1e-6)


def test_rows_of_named_columns_come_in_index_order_and_an_unknown_column_is_named(tmp_path: Path) -> None:
    records = make_records(5, 300, COMPACT)
    cache = write_cache(tmp_path / "cache", records, COMPACT, 300, shard_samples=2)
    assert cache.rows(["category", "source_row"]).to_pylist() == [
        {"category": record.row["category"], "source_row": record.row["source_row"]} for record in records
    ]
    with pytest.raises(CacheError, match=r"has no row column 'colour'; choose from sample_id, num_tokens"):
        cache.rows(["colour"])


def test_feature_statistics_are_those_of_the_samples_that_have_the_feature(tmp_path: Path) -> None:
    records = make_records(11, 300, COMPACT)
    cache = write_cache(tmp_path / "cache", records, COMPACT, 300, shard_samples=3)
    for name in ("vision", "prompt"):
        stored = np.stack([r.features[name] for r in records if name in r.features]).astype(np.float64)
        found = open_cache(tmp_path / "cache").manifest.feature_statistics[name]
        assert found.count == len(stored)
        np.testing.assert_allclose(found.mean, stored.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.deviation, stored.std(axis=0), rtol=1e-12)
    assert cache.manifest.counts.num_samples == 11
    assert cache.manifest.counts.num_tokens == sum(len(record.token_ids) for record in records)

"""Caches of features alone: version 1 as it is, with one token in every sample that says nothing."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.cache.independent_reader import read_samples

from betakd_cache import (
    CacheError,
    CacheWriter,
    FeatureLayout,
    diff,
    export,
    merge,
    open_cache,
    record_without_tokens,
    rules_without_tokens,
    verify,
)

SIZES, LAYOUTS = {"tower": 6}, {"tower": FeatureLayout("tokens", 4)}


def features_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(4, 6)).astype(np.float32)


def write(path: Path, numbers: range, *, exact: bool = False) -> Path:
    rules = rules_without_tokens(SIZES, LAYOUTS, exact=exact)
    with CacheWriter.open_with(path, {"tower": "a"}, rules, shard_samples=3) as writer:
        for number in numbers:
            writer.append(record_without_tokens(f"image {number}", {"tower": features_of(number)}, {"of": str(number)}))
        assert writer.complete()
    return path


@pytest.mark.parametrize("exact", [False, True])
def test_features_come_back_and_a_reader_written_from_the_document_sees_one_certain_token(
    tmp_path: Path, exact: bool
) -> None:
    cache = open_cache(write(tmp_path / "cache", range(8), exact=exact))
    assert verify(tmp_path / "cache").ok
    stored = np.float32 if exact else np.float16
    expected = [features_of(number).astype(stored) for number in range(8)]
    batch = cache.batch([7, 0, 3])
    np.testing.assert_array_equal(batch.arrays["features/tower"], [expected[7], expected[0], expected[3]])
    for number, sample in enumerate(read_samples(tmp_path / "cache")):
        np.testing.assert_array_equal(sample["features"]["tower"], expected[number].astype(np.float64))
        assert sample["token_ids"] == [0]
    array = zarr.open_array(tmp_path / "cache" / "shard-000001.zarr" / "features" / "tower", mode="r")
    np.testing.assert_array_equal(array[:], expected[3:6])


def test_the_token_costs_27_bytes_of_a_sample(tmp_path: Path) -> None:
    record = record_without_tokens("image", {"tower": features_of(0)}, {})
    rules = rules_without_tokens(SIZES, LAYOUTS, exact=False)
    with CacheWriter.open_with(tmp_path / "cache", {}, rules) as writer:
        writer.append(record)
        writer.complete()
    chunks = [path for path in (tmp_path / "cache").rglob("c/**/0") if path.is_file()]
    checksums = 4 * len(chunks)
    boundaries = 4 + 8  # of sample_ptr and entry_ptr there is one number more than samples
    row, present = 2 * 4 * 6, 1
    assert sum(path.stat().st_size for path in chunks) - checksums - boundaries - row - present == 27


def test_such_caches_merge_export_and_compare(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first", range(4)), write(tmp_path / "second", range(4, 6))
    merge([first, second], tmp_path / "both")
    assert diff(tmp_path / "both", write(tmp_path / "whole", range(6))).largest_feature_difference == 0
    assert export(tmp_path / "both", tmp_path / "parquet").num_samples == 6


def test_numbers_beyond_float16_are_refused_unless_exact(tmp_path: Path) -> None:
    huge = {"tower": np.full((4, 6), 1e5, np.float32)}
    for exact in (False, True):
        rules = rules_without_tokens(SIZES, LAYOUTS, exact=exact)
        with CacheWriter.open_with(tmp_path / f"{exact}", {}, rules) as writer:
            if exact:
                writer.append(record_without_tokens("image", huge, {}))
            else:
                with pytest.raises(CacheError, match="sample 'image': feature 'tower' holds a number .* beyond 65504"):
                    writer.append(record_without_tokens("image", huge, {}))

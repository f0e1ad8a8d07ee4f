"""Features at several places, places in focus, and features in int8: the same through every way to read a cache."""

import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import s3fs
from numpy.typing import NDArray
from tests.cache.featured import (
    LAYOUTS,
    NUM_FOCUS,
    NUM_PLACES,
    RULE,
    SETTINGS,
    SIZES,
    VOCABULARY,
    cache_of,
    records_of,
)
from tests.cache.independent_reader import read_samples
from tests.cache.object_store import serve
from tests.cache.records import FEATURE_SIZES, assert_equal_records, make_records, write_cache

from betakd_cache import (
    TokenRule,
    completion,
    derive,
    diff,
    export,
    info,
    layout,
    merge,
    open_cache,
    verify,
)


def stored_values(feature: NDArray[np.float32], rule: TokenRule, feature_dtype: str = "float16") -> NDArray[np.float64]:
    """What a reader must see of a feature, in float64 from the format's description."""
    if rule.exact:
        return feature.astype(np.float64)
    if feature_dtype == "float16":
        return feature.astype(np.float16).astype(np.float64)
    values = feature.astype(np.float64)
    for start in range(0, values.shape[-1], 64):
        group = values[..., start : start + 64]
        scale = (np.abs(group).max(axis=-1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
        group[:] = np.clip(np.round(group / scale), -127, 127) * scale
    return values


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("access", ["mmap", "pread"])
def test_features_come_back_as_the_format_stores_them(tmp_path: Path, settings: dict[str, Any], access: str) -> None:
    records = records_of(8, settings["rule"])
    cache_of(tmp_path / "cache", records, **settings)
    cache = pickle.loads(pickle.dumps(open_cache(tmp_path / "cache", access=access)))  # noqa: S301  # our own bytes
    batch = cache.batch([7, 0, 4, 1]).decode()
    assert batch.features["vision"].shape == (4, NUM_PLACES, SIZES["vision"])
    for place, index in enumerate((7, 0, 4, 1)):
        record, found = records[index], cache.record(index)
        assert found.features.keys() == record.features.keys()
        for name, feature in record.features.items():
            expected = stored_values(feature, **settings)
            np.testing.assert_allclose(found.features[name], expected, rtol=1e-6)
            np.testing.assert_array_equal(batch.features[name][place], found.features[name])
        assert batch.present["vision"][place] == batch.features["vision"][place].any() == ("vision" in record.features)
        assert {name: places.tolist() for name, places in found.focus.items()} == {
            name: places.tolist() for name, places in record.focus.items()
        }
        if "vision" in record.focus:
            assert batch.focus["vision"][place].tolist() == record.focus["vision"].tolist()


def test_a_number_in_int8_is_off_by_less_than_a_250th_of_the_largest_of_its_group(tmp_path: Path) -> None:
    records = records_of(8)
    cache = cache_of(tmp_path / "cache", records, feature_dtype="int8")
    for index, record in enumerate(records):
        for name, feature in record.features.items():
            error = np.abs(cache.record(index).features[name].astype(np.float64) - feature)
            for start in range(0, feature.shape[-1], 64):
                largest = np.abs(feature[..., start : start + 64]).max(axis=-1, keepdims=True)
                assert (error[..., start : start + 64] <= largest / 250).all()


def test_a_group_of_zeros_stays_zero_in_int8(tmp_path: Path) -> None:
    (record,) = make_records(1, VOCABULARY, RULE, feature_sizes={"prompt": 70})
    feature = np.zeros(70, np.float32)
    feature[69] = 2.0
    records = [dataclasses.replace(record, features={"prompt": feature})]
    cache = cache_of(tmp_path / "c", records, feature_sizes={"prompt": 70}, feature_layouts={}, feature_dtype="int8")
    found = cache.record(0).features["prompt"]
    assert not found[:69].any()
    assert found[69] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("block_numbers", [2**23, 1000])
def test_statistics_are_those_over_samples_and_places_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], block_numbers: int
) -> None:
    monkeypatch.setattr(completion, "BLOCK_NUMBERS", block_numbers)
    records = records_of(8, settings["rule"])
    found = cache_of(tmp_path / "cache", records, **settings).manifest.feature_statistics["vision"]
    vectors = [stored_values(record.features["vision"], **settings) for record in records if record.focus]
    assert found.count == len(vectors) == 5
    np.testing.assert_allclose(found.mean, np.concatenate(vectors).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, np.concatenate(vectors).std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_reader_written_from_the_document_sees_places_focus_and_int8(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    cache = cache_of(tmp_path / "cache", records_of(7, settings["rule"]), **settings)
    for index, sample in enumerate(read_samples(tmp_path / "cache")):
        record = cache.record(index)
        assert sample["features"].keys() == record.features.keys()
        for name, feature in record.features.items():
            np.testing.assert_allclose(np.array(sample["features"][name]), feature, rtol=1e-6)
        assert sample["focus"] == {name: places.tolist() for name, places in record.focus.items()}


@pytest.mark.parametrize("settings", SETTINGS)
def test_deriving_and_merging_copy_features_of_every_layout_as_stored(tmp_path: Path, settings: dict[str, Any]) -> None:
    records = records_of(9, settings["rule"])
    whole = cache_of(tmp_path / "whole", records, **settings)
    derive(tmp_path / "whole", tmp_path / "derived", top_k=3)
    for name, part in (("a", records[:4]), ("b", records[4:])):
        cache_of(tmp_path / name, part, **settings)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    merged, derived = open_cache(tmp_path / "merged"), open_cache(tmp_path / "derived")
    assert merged.manifest.bound() == whole.manifest.bound()
    assert derived.manifest.rules.feature_layouts == LAYOUTS
    for index in range(9):
        assert_equal_records(merged.record(index), whole.record(index))
        np.testing.assert_array_equal(
            derived.batch([index]).arrays["features/vision"], whole.batch([index]).arrays["features/vision"]
        )
    assert diff(tmp_path / "whole", tmp_path / "merged").largest_feature_difference == 0.0
    for path in ("derived", "merged"):
        assert verify(tmp_path / path).ok


def test_two_precisions_of_a_feature_are_compared_at_every_place(tmp_path: Path) -> None:
    records = records_of(6)
    exact, coarse = (cache_of(tmp_path / kind, records, feature_dtype=kind) for kind in ("float16", "int8"))
    largest = max(
        float(np.abs(exact.record(index).features["vision"] - coarse.record(index).features["vision"]).max())
        for index, record in enumerate(records)
        if record.focus
    )
    assert 0 < diff(tmp_path / "float16", tmp_path / "int8").largest_feature_difference == largest


def test_an_exported_copy_holds_the_bytes_of_places_scales_and_focus(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", records_of(5), feature_dtype="int8")
    export(tmp_path / "cache", tmp_path / "copy")
    for index, row in enumerate(polars.read_parquet(tmp_path / "copy" / "data" / "*.parquet").to_dicts()):
        for name, array in cache.batch([index]).arrays.items():
            assert row[name.replace("/", "_")] == array.tobytes()
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "| `features_vision` | int8, little-endian | per sample | 6, 150 |" in card
    assert "| `scales_vision` | float16, little-endian | per sample | 6, 3 |" in card
    assert "| `vision_focus` | uint16, little-endian | per sample | 3 |" in card


def test_zarr_reads_features_of_every_layout(tmp_path: Path) -> None:
    import zarr

    cache = cache_of(tmp_path / "cache", records_of(3), feature_dtype="int8")
    group = zarr.open_group(tmp_path / "cache" / "shard-000000.zarr", mode="r")
    for name, array in cache.batch(range(3)).arrays.items():
        np.testing.assert_array_equal(np.asarray(group[name]), array)


def test_the_manifest_and_info_say_how_every_feature_is_laid_out(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", records_of(3), feature_dtype="int8")
    fields = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert fields["feature_layouts"] == {
        "vision": {"layout": "tokens", "num_places": NUM_PLACES, "num_focus": NUM_FOCUS}
    }
    assert fields["feature_dtype"] == "int8"
    assert fields["statistics"][-3:] == ["features/vision", "features/prompt", "vision_focus"]
    assert cache.manifest.rules.feature_shape("vision") == (NUM_PLACES, SIZES["vision"])
    shown = info(tmp_path / "cache").to_json()["feature_layouts"]
    assert shown["vision"] == {"layout": "tokens", "num_places": NUM_PLACES, "num_focus": NUM_FOCUS, "dtype": "int8"}
    assert shown["prompt"] == {"layout": "pooled", "num_places": 1, "num_focus": 0, "dtype": "int8"}


def test_a_manifest_of_pooled_features_says_nothing_of_layouts_as_before_there_were_any(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", make_records(2, VOCABULARY, RULE), RULE, VOCABULARY)
    fields = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert not {"feature_layouts", "feature_dtype"} & set(fields)


def test_shards_are_no_larger_than_memory_holds_of_their_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = NUM_PLACES * SIZES["vision"] + SIZES["prompt"]
    monkeypatch.setattr(layout, "MAX_SHARD_FEATURE_NUMBERS", 2 * numbers)
    cache = cache_of(tmp_path / "cache", records_of(5), shard_samples=100)
    assert cache.shard_ranges() == [(0, 2), (2, 4), (4, 5)]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "staged"))
    yield from serve(monkeypatch)


def test_a_cache_in_a_store_has_the_features_and_statistics_of_one_in_a_folder(
    tmp_path: Path, system: s3fs.S3FileSystem
) -> None:
    records = records_of(4)
    local = cache_of(tmp_path / "local", records, feature_dtype="int8")
    stored = cache_of("s3://bucket/cache", records, feature_dtype="int8")
    for index in range(4):
        assert_equal_records(stored.record(index), local.record(index))
    for name, statistics in local.manifest.feature_statistics.items():
        np.testing.assert_array_equal(stored.manifest.feature_statistics[name].mean, statistics.mean)
    assert local.manifest.feature_statistics["vision"].deviation.min() > 0
    assert FEATURE_SIZES.keys() == local.manifest.feature_statistics.keys()

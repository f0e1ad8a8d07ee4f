"""Resuming, rejections and what a writer refuses."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cache.records import IDENTITY, assert_equal_records, make_records, write_cache, writer_for

from betakd_cache import CacheError, CacheWriter, TokenRule, open_cache, read_manifest, verify

RULE = TokenRule(top_k=20, top_p=0.99)
RECORDS = make_records(12, 300, RULE)


def open_writer(path: Path, **settings: Any) -> CacheWriter:
    return writer_for(path, RULE, 300, **({"shard_samples": 2} | settings))


def test_a_cache_resumed_after_every_shard_equals_one_written_in_one_go(tmp_path: Path) -> None:
    whole = write_cache(tmp_path / "whole", RECORDS, RULE, 300, shard_samples=2)
    while True:
        with open_writer(tmp_path / "resumed") as writer:
            missing = [record for record in RECORDS if record.sample_id not in writer.stored]
            for record in missing[:2]:
                writer.append(record)
            if not missing:
                assert writer.complete()
                break
    resumed = open_cache(tmp_path / "resumed")
    assert resumed.sample_ids.equals(whole.sample_ids)
    for index in range(len(whole)):
        assert_equal_records(resumed.record(index), whole.record(index))
    for name, statistics in whole.manifest.feature_statistics.items():
        np.testing.assert_array_equal(resumed.manifest.feature_statistics[name].mean, statistics.mean)


def test_an_exception_keeps_committed_shards_and_leaves_no_half_written_one(tmp_path: Path) -> None:
    def teacher_that_falls_over() -> None:
        with open_writer(tmp_path / "cache") as writer:
            for record in RECORDS[:5]:
                writer.append(record)
            raise RuntimeError("the teacher fell over")

    with pytest.raises(RuntimeError, match="teacher fell over"):
        teacher_that_falls_over()
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    shards = [f"shard-00000{number}{suffix}" for number in range(2) for suffix in (".parquet", ".zarr")]
    assert names == ["manifest.json", *shards, "shards.jsonl"]
    with open_writer(tmp_path / "cache") as writer:
        assert writer.stored == {record.sample_id for record in RECORDS[:4]}


def test_leaving_the_writer_commits_what_is_pending(tmp_path: Path) -> None:
    with open_writer(tmp_path / "cache", shard_samples=100) as writer:
        writer.append(RECORDS[0])
    with open_writer(tmp_path / "cache") as writer:
        assert writer.stored == {"train/0"}


def test_remains_of_a_shard_that_was_renamed_but_not_listed_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with open_writer(path) as writer:
        for record in RECORDS[:4]:
            writer.append(record)
    journal = path / "shards.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:70])  # the process died while it listed the second shard
    with open_writer(path) as writer:
        assert writer.stored == {"train/0", "train/1"}
        assert not (path / "shard-000001.zarr").exists()
        assert not (path / "shard-000001.parquet").exists()
        for record in RECORDS[2:]:
            writer.append(record)
        writer.complete()
    cache = open_cache(path)
    assert sorted(cache.sample_ids.to_pylist()) == sorted(record.sample_id for record in RECORDS)


def test_a_rejected_sample_counts_as_stored_and_its_reason_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with open_writer(path) as writer:
        writer.append(RECORDS[0])
        writer.reject("train/broken", "the image cannot be decoded")
    with open_writer(path) as writer:
        assert writer.stored == {"train/0", "train/broken"}
        with pytest.raises(CacheError, match=r"holds sample 'train/broken' already; skip the ids in `stored`"):
            writer.append(dataclasses.replace(RECORDS[1], sample_id="train/broken"))
        writer.complete()
    cache = open_cache(path)
    assert cache.rejected == {"train/broken": "the image cannot be decoded"}
    assert cache.manifest.counts.num_rejected == 1


def test_a_sample_cannot_be_appended_twice(tmp_path: Path) -> None:
    with open_writer(tmp_path / "cache", shard_samples=100) as writer:
        writer.append(RECORDS[0])
        with pytest.raises(CacheError, match=r"holds sample 'train/0' already"):
            writer.append(RECORDS[0])


def test_completing_a_complete_cache_again_changes_nothing(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", RECORDS, RULE, 300)
    before = (tmp_path / "cache" / "manifest.json").read_bytes()
    with open_writer(tmp_path / "cache") as writer:
        assert len(writer.stored) == 12
        assert writer.complete()
    assert (tmp_path / "cache" / "manifest.json").read_bytes() == before


def test_a_complete_cache_that_gets_new_records_is_open_until_it_is_completed_again(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    earlier = write_cache(path, RECORDS[:5], RULE, 300, shard_samples=2)
    with open_writer(path) as writer:
        writer.append(RECORDS[5])
        assert open_cache(path).sample_ids.equals(earlier.sample_ids)  # nothing new is committed yet
        writer.append(RECORDS[6])
        with pytest.raises(CacheError, match="is incomplete; run the command that writes it once more"):
            open_cache(path)
        assert len(open_cache(path, allow_incomplete=True)) == 7
        assert_equal_records(earlier.record(4), open_cache(path, allow_incomplete=True).record(4))
        writer.reject("train/x", "no image")
        writer.extend(RECORDS[7:])
        assert writer.complete()
    assert open_cache(path).sample_ids.to_pylist() == [record.sample_id for record in RECORDS]
    assert open_cache(path).rejected == {"train/x": "no image"}
    assert verify(path).ok, verify(path).problems


def test_a_rejection_alone_opens_a_complete_cache_too(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write_cache(path, RECORDS[:2], RULE, 300)
    with open_writer(path) as writer:
        writer.reject("train/x", "no image")
        assert read_manifest(path).state == "open"
        assert writer.complete()
    assert read_manifest(path).counts.num_rejected == 1
    assert verify(path).ok, verify(path).problems


def test_a_part_that_goes_on_keeps_the_others_from_calling_the_cache_complete(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    parts = [open_writer(path, part=(number, 2)) for number in range(2)]
    with contextlib.ExitStack() as stack:
        for number, writer in enumerate(map(stack.enter_context, parts)):
            writer.append(RECORDS[number])
            assert writer.complete() == (number == 1)
        parts[0].extend(RECORDS[2:4])
        parts[1].extend(RECORDS[4:6])
        assert not parts[0].complete()
        assert read_manifest(path).state == "open"
        assert parts[1].complete()
    assert len(open_cache(path)) == 6
    assert verify(path).ok, verify(path).problems


def test_a_cache_without_any_sample_can_be_completed_and_read(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [], RULE, 300)
    assert len(cache) == 0
    assert cache.sample_ids.to_pylist() == []
    with pytest.raises(CacheError, match="does not hold sample 'a'"):
        cache.index_of(["a"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"identity": {"teacher": {"name": "simulated", "revision": "b2"}, "prompt": {"version": 1}}},
         r"was written with teacher.revision = \"a1\", this run has \"b2\"; use the cache's setting, write to another"),
        ({"identity": {"teacher": {"name": "simulated", "revision": "a1"}}},
         r"was written with prompt = {\"version\": 1}, this run has nothing"),
        ({"identity": {**IDENTITY, "dtype": "bfloat16"}},
         r"was written with dtype = nothing, this run has \"bfloat16\""),
        ({"feature_sizes": {"vision": 12, "prompt": 6}}, r"with feature_sizes.prompt = 5, this run has 6"),
        ({"logit_moments": False}, r"with logit_moments = true, this run has false"),
    ],
)  # fmt: skip
def test_a_run_of_another_identity_is_refused_naming_the_first_difference(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    write_cache(tmp_path / "cache", RECORDS[:1], RULE, 300)
    with pytest.raises(CacheError, match=message) as caught:
        open_writer(tmp_path / "cache", **settings)
    assert "\n" not in str(caught.value)


def test_a_run_of_another_token_rule_or_vocabulary_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", RECORDS[:1], RULE, 300)
    with pytest.raises(CacheError, match=r"with token_rule.top_k = 20, this run has 10"):
        writer_for(tmp_path / "cache", dataclasses.replace(RULE, top_k=10), 300)
    with pytest.raises(CacheError, match=r"with token_rule.temperatures = \[1.0, 2.0\], this run has \[1.0\]"):
        writer_for(tmp_path / "cache", dataclasses.replace(RULE, temperatures=(1.0,)), 300)
    with pytest.raises(CacheError, match=r"with vocabulary_size = 300, this run has 301"):
        writer_for(tmp_path / "cache", RULE, 301)


def test_an_identity_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"cannot be written as JSON .*; give text, finite numbers, lists"):
        open_writer(tmp_path / "cache", identity={"a": float("nan")})


def test_overwriting_starts_anew_but_never_removes_what_is_not_a_cache(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", RECORDS[:1], RULE, 300)
    with open_writer(tmp_path / "cache", identity={"other": 1}, overwrite=True) as writer:
        assert writer.stored == set()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(CacheError, match=r"holds chapter.txt and is not a cache; give a new or an empty folder"):
        open_writer(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_file_in_place_of_the_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="is a file, expected a folder for the cache; give another path"):
        open_writer(tmp_path / "cache")


def test_two_writers_of_one_part_are_refused_and_a_closed_one_makes_room(tmp_path: Path) -> None:
    with open_writer(tmp_path / "cache"):
        with pytest.raises(CacheError, match=r"by another process \(part 0 of 1\); wait for it or stop it"):
            open_writer(tmp_path / "cache")
        with pytest.raises(CacheError, match=r"by another process; stop it before overwriting"):
            open_writer(tmp_path / "cache", overwrite=True)
    open_writer(tmp_path / "cache").close()


@pytest.mark.parametrize("block_tokens", [1, 4, 7, 21])
def test_a_shard_that_is_encoded_in_blocks_of_any_size_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_tokens: int
) -> None:
    write_cache(tmp_path / "whole", RECORDS, RULE, 300)
    monkeypatch.setattr("betakd_cache.encode.BLOCK_TOKENS", block_tokens)
    write_cache(tmp_path / "in blocks", RECORDS, RULE, 300)
    journals = [(tmp_path / name / "shards.jsonl").read_bytes() for name in ("whole", "in blocks")]
    assert journals[0] == journals[1], "it lists the sha256 of every file"

"""A cache in an object store holds what one in a folder does, and survives what that one survives."""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from tests.cache.object_store import serve
from tests.cache.records import FEATURE_SIZES, assert_equal_records, make_records, write_cache, writer_for

from betakd_cache import (
    CacheError,
    CacheWriter,
    TeacherCache,
    TokenRule,
    info,
    merge,
    open_cache,
    read_manifest,
    verify,
)
from betakd_cache.object_store import ObjectStore

RULE = TokenRule(top_k=6, top_p=0.99, temperatures=(1.0, 2.0))
SMALL: dict[str, Any] = {"feature_sizes": {}}  # every object costs the server 20 ms
RECORDS = make_records(11, 64, RULE, feature_sizes={})
URL = "s3://bucket/runs/cache"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "staged"))
    yield from serve(monkeypatch)


def opened(url: str = URL, **settings: Any) -> CacheWriter:
    return writer_for(url, RULE, 64, **{"shard_samples": 4, **SMALL, **settings})


def written(url: str = URL, **settings: Any) -> TeacherCache:
    with opened(url, **settings) as writer:
        for record in RECORDS:
            writer.append(record)
        writer.complete()
    return open_cache(url)


def records_by_id(cache: TeacherCache) -> dict[str, Any]:
    return {name: cache.record(index) for index, name in enumerate(cache.sample_ids.to_pylist())}


def assert_holds_all(cache: TeacherCache, local: TeacherCache) -> None:
    left, right = records_by_id(cache), records_by_id(local)
    assert list(left) == list(right)
    for name, record in left.items():
        assert_equal_records(record, right[name])


@pytest.fixture
def local(tmp_path: Path) -> TeacherCache:
    return write_cache(tmp_path / "local", RECORDS, RULE, 64, shard_samples=4, **SMALL)


@pytest.mark.parametrize("access", ["mmap", "pread"])
def test_a_cache_in_a_store_gives_the_same_records_as_one_in_a_folder(
    system: s3fs.S3FileSystem, local: TeacherCache, access: str
) -> None:
    written()
    cache = open_cache(URL, access=access)
    assert_holds_all(cache, local)
    assert cache.manifest.counts.num_samples == local.manifest.counts.num_samples
    assert info(URL).to_json()["entropy"] == info(local.path).to_json()["entropy"]
    assert verify(URL).problems == ()


def test_features_and_their_statistics_are_those_of_a_cache_in_a_folder(
    system: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    records = make_records(5, 64, RULE)
    local, cache = (write_cache(place, records, RULE, 64, shard_samples=3) for place in (tmp_path / "local", URL))
    assert_holds_all(cache, local)
    assert set(cache.manifest.feature_statistics) == set(FEATURE_SIZES)
    for name, statistics in local.manifest.feature_statistics.items():
        np.testing.assert_array_equal(cache.manifest.feature_statistics[name].mean, statistics.mean)
        np.testing.assert_array_equal(cache.manifest.feature_statistics[name].deviation, statistics.deviation)


def test_a_copy_of_the_objects_is_a_cache_in_a_folder(
    system: s3fs.S3FileSystem, local: TeacherCache, tmp_path: Path
) -> None:
    written()
    system.get("bucket/runs/cache", str(tmp_path / "copy"), recursive=True)
    assert_holds_all(open_cache(tmp_path / "copy"), local)
    assert verify(tmp_path / "copy").ok


def test_a_complete_cache_is_opened_without_listing_anything(
    system: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    written()
    monkeypatch.delattr(ObjectStore, "sizes")
    assert len(open_cache(URL)) == len(RECORDS)


def test_a_writer_that_dies_between_sending_and_committing_leaves_nothing_visible_and_resumes(
    system: s3fs.S3FileSystem, local: TeacherCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = ObjectStore.create

    def dying(store: ObjectStore, name: str, content: bytes) -> bool:
        if name.endswith("/00000001"):
            raise KeyboardInterrupt
        return create(store, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "create", dying)
        with pytest.raises(KeyboardInterrupt):
            written()
    assert sum(path.endswith(".parquet") for path in system.find("bucket")) == 2, "one of them is not committed"
    assert len(open_cache(URL, allow_incomplete=True)) == 4
    with pytest.raises(CacheError, match=r"s3://bucket/runs/cache is incomplete; run the command that writes it once"):
        open_cache(URL)
    with opened(shard_samples=4) as writer:
        assert writer.stored == {record.sample_id for record in RECORDS[:4]}
        writer.extend(RECORDS[4:])
        writer.complete()
    assert_holds_all(open_cache(URL), local)
    assert verify(URL).problems == (), "what the dead writer had sent is gone"


def test_the_second_of_two_writers_of_a_part_loses_in_one_line_and_harms_nothing(
    system: s3fs.S3FileSystem, local: TeacherCache
) -> None:
    first, second = (opened(shard_samples=4) for _ in range(2))
    with first:
        first.extend(RECORDS[:4])
        with pytest.raises(
            CacheError, match=r"^s3://bucket/runs/cache is being written by another process \(part 0 of 1\)"
        ):
            second.extend(RECORDS[:4])
        second.close()
        first.extend(RECORDS[4:])
        first.complete()
    assert_holds_all(open_cache(URL), local)
    assert verify(URL).ok


def test_a_writer_that_comes_after_completion_changes_nothing(system: s3fs.S3FileSystem, local: TeacherCache) -> None:
    late = opened()
    written()
    late.extend(RECORDS[:2])
    with pytest.raises(CacheError, match="is being written by another process"):
        late.flush()
    late.close()
    with opened() as again:
        assert again.complete()
    assert_holds_all(open_cache(URL), local)


def test_a_commit_whose_answer_was_lost_is_recognised_as_the_writers_own(
    system: s3fs.S3FileSystem, local: TeacherCache
) -> None:
    store = ObjectStore(URL)
    assert store.create("commits/x", b"mine")
    assert store.create("commits/x", b"mine"), "a second attempt of the same request"
    assert not store.create("commits/x", b"theirs")
    assert store.read("commits/x") == b"mine"


def test_parts_written_side_by_side_make_one_cache(system: s3fs.S3FileSystem) -> None:
    writers = [opened(shard_samples=2, part=(number, 2)) for number in range(2)]
    for number, writer in enumerate(writers):
        writer.extend(RECORDS[number::2])
    writers[0].reject("train/x", "no image")
    assert [writer.complete() for writer in writers] == [False, True]
    for writer in writers:
        writer.close()
    cache = open_cache(URL)
    assert sorted(cache.sample_ids.to_pylist()) == sorted(record.sample_id for record in RECORDS)
    assert cache.rejected == {"train/x": "no image"}
    assert verify(URL).ok


def test_overwriting_removes_the_old_cache_and_shuts_out_its_writer(system: s3fs.S3FileSystem) -> None:
    with opened(shard_samples=4, identity={"teacher": "old"}) as old:
        old.extend(RECORDS[:4])
        assert len(written(overwrite=True)) == len(RECORDS)
        old.extend(RECORDS[4:8])
    assert read_manifest(URL).identity != {"teacher": "old"}
    assert len(open_cache(URL)) == len(RECORDS)


def test_caches_merge_from_a_folder_and_a_store_into_a_store(system: s3fs.S3FileSystem, tmp_path: Path) -> None:
    write_cache(tmp_path / "left", RECORDS[:5], RULE, 64, **SMALL)
    with opened("s3://bucket/right") as writer:
        writer.extend(RECORDS[5:])
        writer.complete()
    assert merge([tmp_path / "left", "s3://bucket/right"], "s3://bucket/both").num_samples == len(RECORDS)
    assert open_cache("s3://bucket/both").sample_ids.to_pylist() == [record.sample_id for record in RECORDS]


def _batch_sum(cache: TeacherCache, answers: Any) -> None:
    answers.put(float(cache.batch(np.arange(len(cache))).gaps().sum()))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_of_every_start_method_read_it(system: s3fs.S3FileSystem, local: TeacherCache, method: str) -> None:
    cache = written()  # the parent has used its connection by now
    context: Any = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    workers = [context.Process(target=_batch_sum, args=(cache, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    expected = float(local.batch(np.arange(len(local))).gaps().sum())
    assert [answers.get() for _ in workers] == [expected, expected]


def test_the_least_recently_used_shards_make_room(
    system: s3fs.S3FileSystem, local: TeacherCache, tmp_path: Path
) -> None:
    written()
    staging = tmp_path / "small"
    entries = [json.loads(line) for line in (local.path / "shards.jsonl").read_text().splitlines()[:3]]
    groups = [sum(size for name, (size, _) in entry["files"].items() if ".zarr/" in name) for entry in entries]
    limit = groups[0] + groups[1] + groups[2] // 2
    cache = open_cache(URL, staging=staging, staging_limit_bytes=limit)
    everything = cache.batch(np.arange(len(cache)))
    np.testing.assert_array_equal(everything.gaps(), local.batch(np.arange(len(local))).gaps())
    names = [name.name.partition("-")[2][:6] for name in sorted(staging.glob("*/shard-*.zarr"))]
    assert names == ["000001", "000002"]
    again = open_cache(URL, staging=staging, staging_limit_bytes=limit)
    np.testing.assert_array_equal(again.batch([0]).gaps(), local.batch([0]).gaps())
    used = sum(file.stat().st_size for file in staging.glob("*/shard-*/**/*") if file.is_file())
    assert used <= limit

"""Several writers, each with a part of one cache."""

import contextlib
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cache.records import assert_equal_records, make_records, write_cache, writer_for

from betakd_cache import CacheError, CacheWriter, TokenRule, open_cache, verify

RULE = TokenRule(top_k=20, top_p=0.99)
RECORDS = make_records(12, 300, RULE)


def open_writer(path: Path, **settings: Any) -> CacheWriter:
    return writer_for(path, RULE, 300, **({"shard_samples": 2} | settings))


def _write_part(path: Path, number: int, of: int) -> None:
    with open_writer(path, part=(number, of)) as writer:
        for record in RECORDS[number::of]:
            writer.append(record)
        writer.complete()


def test_parts_written_by_several_processes_at_once_make_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_part, args=(tmp_path / "cache", number, 3)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache = open_cache(tmp_path / "cache")
    whole = write_cache(tmp_path / "whole", RECORDS, RULE, 300)
    assert len(cache) == 12
    for index, sample_id in enumerate(whole.sample_ids.to_pylist()):
        assert_equal_records(cache.record(int(cache.index_of([sample_id])[0])), whole.record(index))
    np.testing.assert_allclose(
        cache.manifest.feature_statistics["vision"].deviation, whole.manifest.feature_statistics["vision"].deviation
    )


def test_the_cache_is_complete_only_with_its_last_part(tmp_path: Path) -> None:
    with open_writer(tmp_path / "cache", part=(1, 2)) as writer:
        writer.append(RECORDS[0])
        assert not writer.complete()
    with pytest.raises(CacheError, match="is incomplete; run the command that writes it once more, it resumes"):
        open_cache(tmp_path / "cache")
    assert len(open_cache(tmp_path / "cache", allow_incomplete=True)) == 1
    with open_writer(tmp_path / "cache", part=(0, 2)) as writer:
        assert writer.stored == {"train/0"}
        assert writer.complete()
    assert len(open_cache(tmp_path / "cache")) == 1


def test_remains_of_an_abandoned_division_into_parts_are_cleared_on_completion(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with open_writer(path, part=(1, 4)) as writer:
        for record in RECORDS[:2]:
            writer.append(record)
    with open_writer(path) as writer:
        with contextlib.closing(open_writer(path, part=(1, 4))):
            (path / ".tmp-shard-1-of-4-000001").mkdir()
            with pytest.raises(CacheError, match=r"by another process \(part 1 of 4\)"):
                writer.complete()
        assert writer.complete()
    assert len(open_cache(path)) == 2
    assert verify(path).ok


def test_a_sample_in_two_parts_is_found_when_the_cache_is_completed(tmp_path: Path) -> None:
    with open_writer(tmp_path / "cache", part=(0, 2)) as first, open_writer(tmp_path / "cache", part=(1, 2)) as second:
        first.append(RECORDS[3])
        second.append(RECORDS[3])
        first.complete()
        with pytest.raises(CacheError, match=r"holds sample 'train/3' in more than one part; write it again"):
            second.complete()


def test_parts_cannot_overwrite_each_other(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", RECORDS[:1], RULE, 300)
    with pytest.raises(CacheError, match=r"part 0 of 2 cannot overwrite .*; remove the cache, then start all parts"):
        open_writer(tmp_path / "cache", part=(0, 2), overwrite=True)


@pytest.mark.parametrize("settings", [{"part": (2, 2)}, {"part": (-1, 2)}, {"shard_samples": 0}])
def test_impossible_parts_and_shard_sizes_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match=r"give \(i, n\) with 0 <= i < n, and at least 1"):
        open_writer(tmp_path / "cache", **settings)

"""Other programs, other processes and read-only places see the same values; opening a large cache is quick."""

import gc
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import zarr
from tests.cache.records import make_records, write_cache

from betakd_cache import CacheError, TeacherCache, TokenRule, open_cache

RULE = TokenRule(top_k=8, top_p=0.99)
RECORDS = make_records(6, 70_000, RULE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    return write_cache(tmp_path_factory.mktemp("read") / "cache", RECORDS, RULE, 70_000, shard_samples=3)


def read_array(group: zarr.Group, name: str) -> np.ndarray:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def test_zarr_python_reads_the_values_that_the_reader_reads(cache: TeacherCache) -> None:
    groups = [zarr.open_group(cache.path / f"shard-{number:06d}.zarr", mode="r") for number in range(2)]
    batch = cache.batch(range(6))
    for name, array in batch.arrays.items():
        parts = [read_array(group, name) for group in groups]
        assert parts[0].dtype == array.dtype
        np.testing.assert_array_equal(np.concatenate(parts), array, err_msg=name)
    assert sorted(groups[0].array_keys()) == sorted(
        ["sample_ptr", "entry_ptr", *(name for name in batch.arrays if "/" not in name)]
    )
    first, second = (read_array(group, "sample_ptr").astype(int) for group in groups)
    starts = np.concatenate([first, batch.token_ptr[3] + second[1:]])
    np.testing.assert_array_equal(starts, batch.token_ptr)


def test_polars_reads_the_rows_that_the_reader_reads(cache: TeacherCache) -> None:
    frame = polars.read_parquet(cache.path / "shard-*.parquet")
    assert frame.to_dicts() == cache.rows().to_pylist()
    assert polars.read_parquet(cache.path / "rejected.parquet").columns == ["sample_id", "reason"]


def test_positioned_reads_return_what_memory_maps_return(cache: TeacherCache) -> None:
    mapped, positioned = cache.batch([5, 0, 3, 3]), open_cache(cache.path, access="pread").batch([5, 0, 3, 3])
    assert mapped.arrays.keys() == positioned.arrays.keys()
    for name, array in mapped.arrays.items():
        np.testing.assert_array_equal(array, positioned.arrays[name], err_msg=name)
        assert array.dtype == positioned.arrays[name].dtype
    np.testing.assert_array_equal(mapped.entry_ptr, positioned.entry_ptr)


def test_an_unknown_access_is_refused(cache: TeacherCache) -> None:
    with pytest.raises(CacheError, match="access is 'fast'; choose from mmap, pread"):
        open_cache(cache.path, access="fast")


def test_maps_keep_no_file_open_and_positioned_reads_only_while_they_are_used(cache: TeacherCache) -> None:
    def num_open() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    mapped, positioned = open_cache(cache.path), open_cache(cache.path, access="pread")
    mapped.batch(range(6))
    assert num_open() == before
    positioned.batch(range(6))
    assert num_open() > before
    del positioned
    assert num_open() == before


def test_positioned_reads_close_the_files_used_least_recently(
    cache: TeacherCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("betakd_cache.access.MAX_OPEN_FILES", 5)
    before = len(list(Path("/proc/self/fd").iterdir()))
    positioned = open_cache(cache.path, access="pread")
    np.testing.assert_array_equal(positioned.batch([5, 0]).gaps(), cache.batch([5, 0]).gaps())
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 5


def _decoded_gaps(cache: TeacherCache, queue: "multiprocessing.Queue[np.ndarray]") -> None:
    queue.put(cache.batch([4, 1]).decode().gaps)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_read_a_cache_that_their_parent_has_read(cache: TeacherCache, method: str) -> None:
    expected = cache.batch([4, 1]).decode().gaps
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_decoded_gaps, args=(cache, queue))
    process.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    process.join()
    assert process.exitcode == 0


def test_reading_writes_nothing(cache: TeacherCache) -> None:
    before = {file: file.stat().st_mtime_ns for file in cache.path.rglob("*")}
    again = open_cache(cache.path)
    again.batch([0, 5]).decode()
    again.record(3)
    again.rows()
    assert {file: file.stat().st_mtime_ns for file in cache.path.rglob("*")} == before


def test_opening_reads_no_array_and_no_row(cache: TeacherCache, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("manifest.json", "shards.jsonl"):
        (bare / name).write_bytes((cache.path / name).read_bytes())
    assert len(open_cache(bare)) == 6


OPEN_AND_FIND = """
import json, sys, time
from betakd_cache import open_cache
started = time.perf_counter()
cache = open_cache(sys.argv[1])
cache.sample_ids
opened = time.perf_counter()
found = cache.index_of(["train/2199551", "train/0"]).tolist()
peak_bytes = 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
print(json.dumps([len(cache), opened - started, time.perf_counter() - opened, peak_bytes, found]))
"""


@pytest.mark.long
def test_a_cache_of_two_million_samples_opens_within_two_seconds_and_300_megabytes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tests.cache.records import writer_for

    from betakd_cache.completion import complete_manifest

    num_shards, size = 2148, 1024
    path = tmp_path / "cache"
    small = write_cache(tmp_path / "small", RECORDS[:1], RULE, 70_000)
    line = json.loads((small.path / "shards.jsonl").read_text().splitlines()[0])
    with writer_for(path, RULE, 70_000, feature_sizes={}):
        pass
    with open(path / "shards.jsonl", "w") as journal:
        for number in range(num_shards):
            ids = pa.array([f"train/{number * size + place}" for place in range(size)])
            columns = {"sample_id": ids, "num_tokens": np.full(size, 50), "gold_nll": np.random.rand(size)}
            pq.write_table(pa.table(columns), path / f"shard-{number:06d}.parquet")
            files = {key.replace("000000", f"{number:06d}"): value for key, value in line["files"].items()}
            entry = line | {"shard": f"shard-{number:06d}", "num_samples": size, "files": files}
            journal.write(json.dumps(entry) + "\n")
    complete_manifest(path, (0, 1))
    command = [sys.executable, "-c", OPEN_AND_FIND, str(path)]
    num_samples, open_s, find_s, peak_bytes, found = json.loads(subprocess.check_output(command))
    print(f"{num_samples} samples: open {open_s:.2f} s, first index_of {find_s:.2f} s, peak {peak_bytes / 1e6:.0f} MB")
    assert (num_samples, found) == (num_shards * size, [2199551, 0])
    assert open_s <= 2
    assert peak_bytes <= 300e6

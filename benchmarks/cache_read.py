"""How fast batches of 32 samples are read: the cache against a flat memory map and against other formats.

    python benchmarks/cache_read.py [--quick] [--json FILE]

The flat memory map holds the same arrays in one file each, without shards, cut out by slices of NumPy; the map of int32
and fp32 holds what needs no decoding, at five times the size. Every pair times the flat map and a candidate on the same
batch, one after the other; `speed` is the flat map's time over the candidate's, its median and the middle half of the
pairs. Batches are of random samples, or of neighbours ("block"). Everything lies in the page cache, except where a row
says "cold": there the files were dropped from it before. "2 workers": a DataLoader's, a hundred batches each time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmark_readers import (
    Reader,
    arrow_reader,
    flat_reader,
    laid_out,
    padded_reader,
    parquet_reader,
    write_flat,
    zarr_reader,
)
from betakd_cache import CacheWriter, TeacherCache, TokenRule, export, open_cache
from betakd_cache.simulation import simulated_records

BATCH_SAMPLES = 32
FEATURES = {"vision": 1024}
VOCABULARY = 32_000

WORKER_BATCHES = 100
NUM_WARM_UPS = 10

Job = Callable[[NDArray[np.int64]], float]
"""Reads the batch of these samples and returns the seconds that took."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside what it is measured against."""

    reader: str
    against: str
    candidate: Job
    base: Job
    num_pairs: int
    is_block: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples and pairs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    num_samples, num_pairs = (4096, 40) if arguments.quick else (32_768, 200)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder), num_samples, num_pairs))
    table = Table(title=f"Batches of {BATCH_SAMPLES} of {num_samples:,} samples")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("reader", "against") else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.4g}" for value in row.values()))
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(folder: Path, num_samples: int, num_pairs: int) -> Iterator[dict[str, Any]]:
    """One row per reader."""
    cache = write_cache(folder / "cache", num_samples)
    num_tokens = cache.manifest.counts.num_tokens / num_samples
    for comparison in comparisons(cache, folder, num_pairs):
        base_s, times_s = paired_times(comparison, num_samples)
        ratios = [left / right for left, right in zip(base_s, times_s, strict=True)]
        quarters = statistics.quantiles(ratios, n=4)
        yield {
            "reader": comparison.reader,
            "against": comparison.against,
            "speed": statistics.median(ratios),
            "speed_25": quarters[0],
            "speed_75": quarters[2],
            "batch_us": 1e6 * statistics.median(times_s),
            "against_us": 1e6 * statistics.median(base_s),
            "mtokens_per_s": BATCH_SAMPLES * num_tokens / statistics.median(times_s) / 1e6,
            "pairs": comparison.num_pairs,
        }


def comparisons(cache: TeacherCache, folder: Path, num_pairs: int) -> Iterator[Comparison]:
    """What is compared, one after another."""
    export(cache.path, folder / "parquet")
    whole = write_flat(cache, folder / "flat")
    read_flat, slow = flat_reader(cache, whole, folder / "flat"), max(20, num_pairs // 10)
    flat, decoded = timed(read_flat), timed(lambda chosen: cache.batch(chosen).decode())
    padded = timed(padded_reader(cache, folder / "padded"))
    yield Comparison("cache", "flat map", timed(cache.batch), flat, num_pairs)
    yield Comparison("cache, block", "flat map", timed(cache.batch), flat, num_pairs, is_block=True)
    yield Comparison("cache, pread", "flat map", timed(open_cache(cache.path, access="pread").batch), flat, num_pairs)
    flat_decoded = timed(lambda chosen: read_flat(chosen).decode())
    yield Comparison("cache, decoded", "flat map, decoded", decoded, flat_decoded, num_pairs)
    yield Comparison("cache, decoded", "flat map of int32 + fp32, K = 64", decoded, padded, num_pairs)
    yield Comparison("cache, decoded", "flat map", decoded, flat, num_pairs)
    # What no decoder in NumPy can go beyond.
    yield Comparison(
        "flat map, laid out", "flat map", timed(lambda chosen: laid_out(read_flat(chosen))), flat, num_pairs
    )
    workers = in_workers(read_flat, len(cache))
    yield Comparison("cache, 2 workers", "flat map, 2 workers", in_workers(cache.batch, len(cache)), workers, slow)
    os.sync()  # what is not on disk cannot be dropped from memory
    cold_flat = cold(lambda: flat_reader(cache, whole, folder / "flat"), folder / "flat", cache)
    for access in ("mmap", "pread"):
        candidate = cold(opener(cache.path, access), cache.path, cache)
        yield Comparison(f"cache, {access}, cold", "flat map, cold", candidate, cold_flat, slow)
    arrow = timed(arrow_reader(folder / "parquet", folder / "arrow"))
    yield Comparison("Arrow IPC, mapped", "flat map", arrow, flat, slow)
    yield Comparison("zarr-python", "flat map", timed(zarr_reader(cache)), flat, slow)
    yield Comparison("Parquet", "flat map", timed(parquet_reader(folder / "parquet")), flat, slow)


def opener(path: Path, access: str) -> Callable[[], Reader]:
    """What opens the cache anew."""
    return lambda: open_cache(path, access=access).batch


def timed(reader: Reader) -> Job:
    """The job of reading one batch."""

    def job(chosen: NDArray[np.int64]) -> float:
        started_s = time.perf_counter()
        reader(chosen)
        return time.perf_counter() - started_s

    return job


def cold(open_reader: Callable[[], Reader], files: Path, cache: TeacherCache) -> Job:
    """The job of reading one batch whose pages are in no memory; opening the files is not timed."""
    first_of_shards = np.array([start for start, _ in cache.shard_ranges()])

    def job(chosen: NDArray[np.int64]) -> float:
        reader = open_reader()
        reader(first_of_shards)
        for path in files.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        return timed(reader)(chosen)

    return job


class Batches(Dataset):
    """Item i is the i-th of a hundred batches of random samples."""

    def __init__(self, reader: Reader, num_samples: int) -> None:
        self._reader = reader
        self._chosen = np.random.default_rng(2).integers(0, num_samples, (WORKER_BATCHES, BATCH_SAMPLES))

    def __len__(self) -> int:
        return WORKER_BATCHES

    def __getitem__(self, index: int) -> Any:
        return self._reader(self._chosen[index])


def in_workers(reader: Reader, num_samples: int) -> Job:
    """The job of fetching a hundred batches through two worker processes: the seconds of one batch."""
    loader = DataLoader(
        Batches(reader, num_samples),
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )

    def job(_: NDArray[np.int64]) -> float:
        started_s = time.perf_counter()
        for _ in loader:
            pass
        return (time.perf_counter() - started_s) / WORKER_BATCHES

    return job


def paired_times(comparison: Comparison, num_samples: int) -> tuple[list[float], list[float]]:
    """Seconds of the base and of the candidate on the same batches; who goes first alternates."""
    generator = np.random.default_rng(1)
    base_s: list[float] = []
    candidate_s: list[float] = []
    for pair in range(comparison.num_pairs + NUM_WARM_UPS):
        if comparison.is_block:
            chosen = generator.integers(0, num_samples - BATCH_SAMPLES) + np.arange(BATCH_SAMPLES)
        else:
            chosen = generator.integers(0, num_samples, BATCH_SAMPLES)
        order = [(comparison.base, base_s), (comparison.candidate, candidate_s)]
        for job, times_s in order if pair % 2 else order[::-1]:
            seconds = job(chosen)
            if pair >= NUM_WARM_UPS:  # the first ones open files
                times_s.append(seconds)
    return base_s, candidate_s


def write_cache(path: Path, num_samples: int) -> TeacherCache:
    """A cache of simulated records."""
    records = simulated_records(num_samples, vocabulary_size=VOCABULARY, feature_sizes=FEATURES)
    with CacheWriter.open(
        path, identity={}, token_rule=TokenRule(), vocabulary_size=VOCABULARY, feature_sizes=FEATURES
    ) as writer:
        for record in records:
            writer.append(record)
        writer.complete()
    return open_cache(path)


if __name__ == "__main__":
    main()

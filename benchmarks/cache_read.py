"""How fast random batches of 32 samples are read: the cache against a flat memory map and against other formats.

    python benchmarks/cache_read.py [--quick] [--json FILE]

The flat memory map holds the same arrays in one file each, without shards, cut out by slices of NumPy; the map of int32
and fp32 holds what needs no decoding, at five times the size. Every pair times the flat map and a candidate on the same
batch, one after the other; `speed` is the flat map's time over the candidate's, its median and the middle half of the
pairs. Everything lies in the page cache.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from betakd_cache import CacheWriter, CompactBatch, TeacherCache, TokenRule, export, open_cache
from betakd_cache.simulation import simulated_records

BATCH_SAMPLES = 32
FEATURES = {"vision": 1024}
VOCABULARY = 32_000

Reader = Callable[[NDArray[np.int64]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples and pairs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    num_samples, num_pairs = (4096, 40) if arguments.quick else (32_768, 200)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder), num_samples, num_pairs))
    table = Table(title=f"Random batches of {BATCH_SAMPLES} of {num_samples:,} samples")
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
    export(cache.path, folder / "parquet")
    positioned = open_cache(cache.path, access="pread")
    flat, num_tokens = flat_reader(cache, folder / "flat"), cache.manifest.counts.num_tokens / num_samples
    slow = max(20, num_pairs // 10)
    plan: list[tuple[str, Reader, str, Reader, int]] = [
        ("cache", cache.batch, "flat map", flat, num_pairs),
        ("cache, pread", positioned.batch, "flat map", flat, num_pairs),
        ("cache, decoded", lambda chosen: cache.batch(chosen).decode(), "flat map, decoded",
         lambda chosen: flat(chosen).decode(), num_pairs),
        ("cache, decoded", lambda chosen: cache.batch(chosen).decode(), "flat map of int32 + fp32, K = 64",
         padded_reader(cache, folder / "padded"), num_pairs),
        ("cache, decoded", lambda chosen: cache.batch(chosen).decode(), "flat map", flat, num_pairs),
        ("Arrow IPC, mapped", arrow_reader(folder / "parquet", folder / "arrow"), "flat map", flat, slow),
        ("zarr-python", zarr_reader(cache), "flat map", flat, slow),
        ("Parquet", parquet_reader(folder / "parquet"), "flat map", flat, slow),
    ]  # fmt: skip
    for name, reader, base_name, base, pairs in plan:
        base_s, times_s, ratios = paired_times(base, reader, num_samples, pairs)
        quarters = statistics.quantiles(ratios, n=4)
        yield {
            "reader": name,
            "against": base_name,
            "speed": statistics.median(ratios),
            "speed_25": quarters[0],
            "speed_75": quarters[2],
            "batch_us": 1e6 * statistics.median(times_s),
            "against_us": 1e6 * statistics.median(base_s),
            "mtokens_per_s": BATCH_SAMPLES * num_tokens / statistics.median(times_s) / 1e6,
            "pairs": pairs,
        }


def paired_times(
    base: Reader, candidate: Reader, num_samples: int, num_pairs: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of both readers and their ratios on the same random batches; who goes first alternates."""
    generator = np.random.default_rng(1)
    base_s: list[float] = []
    candidate_s: list[float] = []
    for pair in range(num_pairs + 2):
        chosen = generator.integers(0, num_samples, BATCH_SAMPLES)
        order = [(base, base_s), (candidate, candidate_s)]
        for reader, times_s in order if pair % 2 else order[::-1]:
            started_s = time.perf_counter()
            reader(chosen)
            if pair >= 2:  # the first two open files
                times_s.append(time.perf_counter() - started_s)
    return base_s, candidate_s, [left / right for left, right in zip(base_s, candidate_s, strict=True)]


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


def flat_reader(cache: TeacherCache, folder: Path) -> Callable[[NDArray[np.int64]], CompactBatch]:
    """A reader of the same arrays from one mapped file each."""
    folder.mkdir()
    whole = cache.batch(np.arange(len(cache)))
    arrays = {}
    for name, array in whole.arrays.items():
        file = folder / name.replace("/", "_")
        array.tofile(file)
        with pa.memory_map(str(file)) as mapped:
            arrays[name] = np.frombuffer(mapped.read_buffer(), array.dtype).reshape(array.shape)
    bounds = {
        len(cache): np.arange(len(cache) + 1),
        whole.token_ptr[-1]: whole.token_ptr,
        whole.entry_ptr[-1]: whole.entry_ptr,
    }

    def read(chosen: NDArray[np.int64]) -> CompactBatch:
        samples, tokens, entries = (
            list(zip(of[chosen].tolist(), of[chosen + 1].tolist(), strict=True)) for of in bounds.values()
        )
        ranges = dict(zip(bounds, (samples, tokens, entries), strict=True))
        pieces = {
            name: np.concatenate([array[start:stop] for start, stop in ranges[len(array)]])
            for name, array in arrays.items()
        }
        pointers = (np.cumsum([0, *(stop - start for start, stop in pairs)]) for pairs in (tokens, entries))
        return CompactBatch(pieces, *pointers)

    return read


def padded_reader(cache: TeacherCache, folder: Path) -> Reader:
    """A reader of what needs no decoding: 64 ids and gaps of every token, and the features, from one map each."""
    folder.mkdir()
    files = {name: (folder / name).open("wb") for name in ("ids", "gaps", "vision")}
    for start, stop in cache.shard_ranges():
        batch = cache.batch(np.arange(start, stop)).decode()
        space = ((0, 0), (0, 64 - batch.ids.shape[1]))
        np.pad(batch.ids.astype(np.int32), space).tofile(files["ids"])
        np.pad(batch.gaps, space, constant_values=np.inf).tofile(files["gaps"])
        batch.features["vision"].tofile(files["vision"])
    for file in files.values():
        file.close()
    ids = np.memmap(folder / "ids", np.int32, "r").view(np.ndarray).reshape(-1, 64)
    gaps = np.memmap(folder / "gaps", np.float32, "r").view(np.ndarray).reshape(-1, 64)
    vision = np.memmap(folder / "vision", np.float32, "r").view(np.ndarray).reshape(len(cache), -1)
    token_ptr = cache.batch(np.arange(len(cache))).token_ptr

    def read(chosen: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        ranges = list(zip(token_ptr[chosen].tolist(), token_ptr[chosen + 1].tolist(), strict=True))
        rows = [np.concatenate([array[start:stop] for start, stop in ranges]) for array in (ids, gaps)]
        return rows[0].astype(np.int64), rows[1], vision[chosen]

    return read


def zarr_reader(cache: TeacherCache) -> Reader:
    """zarr-python's own partial reads of the cache's arrays."""
    starts = np.array([start for start, _ in cache.shard_ranges()])
    names = list(cache.batch([0]).arrays)
    groups = [zarr.open_group(path, mode="r") for path in sorted(cache.path.glob("shard-*.zarr"))]
    shards: list[dict[str, Any]] = [{name: group[name] for name in (*names, *POINTERS)} for group in groups]
    pointers = [{name: np.asarray(shard[name][:]).astype(np.int64) for name in POINTERS} for shard in shards]

    def read(chosen: NDArray[np.int64]) -> list[NDArray[Any]]:
        pieces = []
        for index in chosen.tolist():
            number = int(np.searchsorted(starts, index, side="right")) - 1
            place, tables = index - int(starts[number]), pointers[number]
            ranges = {len(table) - 1: (place, place + 1) for table in tables.values()}
            ranges |= {int(table[-1]): tuple(table[place : place + 2].tolist()) for table in tables.values()}
            pieces += [shards[number][name][slice(*ranges[shards[number][name].shape[0]])] for name in names]
        return pieces

    return read


POINTERS = ("sample_ptr", "entry_ptr")


def parquet_reader(folder: Path) -> Reader:
    """Rows of the exported Parquet copy, whose binary columns hold the same bytes; a row group is read whole."""
    files = [pq.ParquetFile(path) for path in sorted((folder / "data").iterdir())]
    return _table_reader([file.metadata.num_rows for file in files], [file.read for file in files])


def arrow_reader(parquet: Path, folder: Path) -> Reader:
    """Rows of the same table in mapped, uncompressed Arrow IPC files."""
    folder.mkdir()
    tables = []
    for path in sorted((parquet / "data").iterdir()):
        target = folder / f"{path.stem}.arrow"
        table = pq.read_table(path)
        with pa.ipc.new_file(target, table.schema) as writer:
            writer.write_table(table)
        tables.append(pa.ipc.open_file(pa.memory_map(str(target))).read_all())
    return _table_reader(
        [table.num_rows for table in tables], [functools.partial(pa.Table.slice, table) for table in tables]
    )


def _table_reader(sizes: list[int], open_table: list[Callable[[], pa.Table]]) -> Reader:
    starts = np.cumsum([0, *sizes])

    def read(chosen: NDArray[np.int64]) -> list[pa.Table]:
        numbers = np.searchsorted(starts, chosen, side="right") - 1
        return [
            open_table[number]().take(pa.array(chosen[numbers == number] - starts[number]))
            for number in np.unique(numbers)
        ]

    return read


if __name__ == "__main__":
    main()

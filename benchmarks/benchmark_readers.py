"""Readers of a cache's numbers from other places: flat memory maps, zarr-python, Parquet and Arrow IPC."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from betakd_cache import CompactBatch, TeacherCache

Reader = Callable[[NDArray[np.int64]], Any]


def write_flat(cache: TeacherCache, folder: Path) -> CompactBatch:
    """All of the cache; its arrays are written to `folder`, one file each."""
    folder.mkdir()
    whole = cache.batch(np.arange(len(cache)))
    for name, array in whole.arrays.items():
        array.tofile(folder / name.replace("/", "_"))
    return whole


def flat_reader(cache: TeacherCache, whole: CompactBatch, folder: Path) -> Callable[[NDArray[np.int64]], CompactBatch]:
    """A reader of the arrays that `write_flat` wrote, from one mapped file each."""
    arrays = {}
    for name, array in whole.arrays.items():
        with pa.memory_map(str(folder / name.replace("/", "_"))) as mapped:
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


def laid_out(batch: CompactBatch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ids and codes of a batch with one row per token and nothing decoded: what decoding costs if it is free."""
    counts = batch.arrays["tok_n"]
    kept = np.arange(counts.max(), dtype=counts.dtype) < counts[:, None]
    ids, gaps = np.zeros(kept.shape, np.int64), np.full(kept.shape, np.inf, np.float32)
    ids[kept], gaps[kept] = batch.arrays["ids"], batch.arrays["gap"]
    return ids, gaps


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

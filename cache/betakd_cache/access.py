"""Two ways to read the arrays of shards: through memory maps, or through positioned reads announced a batch ahead.

The data of an array lie raw at offset 0 of its chunk file, so neither parses anything. Maps are fastest while the cache
fits into memory; beyond that, a map reads page by page on demand, where announced reads keep the device busy.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from betakd_cache.errors import CacheError
from betakd_cache.journal import ShardEntry
from betakd_cache.layout import ArraySpec, Axis
from betakd_cache.rows import damaged
from betakd_cache.zarr_arrays import CRC_BYTES, chunk_name

MAX_OPEN_SHARDS = 2048  # about 17 maps each; Linux allows a process 65,530

Ranges = Sequence[Sequence[int]]
"""(start, stop) per sample."""


class Access(Protocol):
    """Reads rows of the arrays of a cache's shards."""

    def pointers(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """`sample_ptr` and `entry_ptr` `[S + 1]` of a shard."""

    def read(self, numbers: Sequence[int], ranges: Mapping[Axis, Ranges]) -> dict[str, list[NDArray[Any]]]:
        """Per array the rows of each sample: `ranges` along its axis, in shard `numbers`."""


class MappedAccess:
    """Slices of memory maps, which stay open."""

    def __init__(self, cache_path: Path, shards: Sequence[ShardEntry], specs: Mapping[str, ArraySpec]) -> None:
        self._specs = specs
        self._shard = functools.lru_cache(MAX_OPEN_SHARDS)(
            lambda number: {name: map_array(cache_path, shards[number], spec) for name, spec in specs.items()}
        )

    def pointers(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        shard = self._shard(number)
        return shard["sample_ptr"], shard["entry_ptr"]

    def read(self, numbers: Sequence[int], ranges: Mapping[Axis, Ranges]) -> dict[str, list[NDArray[Any]]]:
        shards = [self._shard(number) for number in numbers]
        return {
            name: [shard[name][start:stop] for shard, (start, stop) in zip(shards, ranges[spec.axis], strict=True)]
            for name, spec in self._specs.items()
            if spec.axis in ranges
        }


class PositionedAccess:
    """pread of exactly the rows asked for, after telling the kernel about all of them; no file stays open."""

    def __init__(self, cache_path: Path, shards: Sequence[ShardEntry], specs: Mapping[str, ArraySpec]) -> None:
        self._cache_path, self._shards, self._specs = cache_path, shards, specs
        self.pointers: Callable[[int], tuple[NDArray[Any], NDArray[Any]]] = functools.cache(self._read_pointers)

    def read(self, numbers: Sequence[int], ranges: Mapping[Axis, Ranges]) -> dict[str, list[NDArray[Any]]]:
        rows = {
            name: list(zip(numbers, [spec] * len(numbers), ranges[spec.axis], strict=True))
            for name, spec in self._specs.items()
            if spec.axis in ranges
        }
        for wanted in rows.values():
            for number, spec, (start, stop) in wanted:
                self._announce(number, spec, start, stop)
        return {
            name: [self._read(number, spec, start, stop) for number, spec, (start, stop) in wanted]
            for name, wanted in rows.items()
        }

    def _read_pointers(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        size = self._shards[number].num_samples + 1
        return (
            self._read(number, self._specs["sample_ptr"], 0, size),
            self._read(number, self._specs["entry_ptr"], 0, size),
        )

    def _announce(self, number: int, spec: ArraySpec, start: int, stop: int) -> None:
        """Nothing; the kernel goes on reading after the file is closed."""
        path, row_bytes = chunk_path(self._cache_path, self._shards[number], spec), spec.row_bytes
        descriptor = _open(path)
        try:
            os.posix_fadvise(descriptor, start * row_bytes, (stop - start) * row_bytes, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    def _read(self, number: int, spec: ArraySpec, start: int, stop: int) -> NDArray[Any]:
        path, row_bytes = chunk_path(self._cache_path, self._shards[number], spec), spec.row_bytes
        descriptor = _open(path)
        try:
            check_size(path, self._shards[number], spec, os.fstat(descriptor).st_size)
            content = os.pread(descriptor, (stop - start) * row_bytes, start * row_bytes)
        finally:
            os.close(descriptor)
        rows = np.frombuffer(content, spec.dtype)
        return rows if spec.width is None else rows.reshape(-1, spec.width)


ACCESSES: dict[str, Callable[[Path, Sequence[ShardEntry], Mapping[str, ArraySpec]], Access]] = {
    "mmap": MappedAccess,
    "pread": PositionedAccess,
}


def chunk_path(cache_path: Path, entry: ShardEntry, spec: ArraySpec) -> Path:
    """The file that holds an array of a shard."""
    return cache_path / f"{entry.name}.zarr" / chunk_name(spec.name, 1 if spec.width is None else 2)


def check_size(path: Path, entry: ShardEntry, spec: ArraySpec, size_bytes: int) -> int:
    """The size of the data in bytes; raises CacheError where the file is not of this size and its checksum's."""
    expected = spec.row_bytes * spec.shape(entry.num_samples, entry.num_tokens, entry.num_entries)[0]
    if size_bytes != expected + CRC_BYTES:
        raise CacheError(
            f"{path} is {size_bytes} bytes long, expected {expected + CRC_BYTES}; "
            "restore it from a copy or write the cache again"
        )
    return expected


def map_array(cache_path: Path, entry: ShardEntry, spec: ArraySpec) -> NDArray[Any]:
    """A read-only array over its chunk file; raises CacheError where the file is missing or of another size.

    pyarrow maps it because a closed pyarrow map lives on in its buffers without a file descriptor, where `mmap.mmap`
    holds one as long as it lives: a thousand shards would take sixteen thousand.
    """
    path = chunk_path(cache_path, entry, spec)
    try:
        with pa.memory_map(str(path)) as file:
            data = file.read_buffer(check_size(path, entry, spec, file.size()))
    except OSError as error:
        raise damaged(path, error) from error
    return np.frombuffer(data, spec.dtype).reshape(spec.shape(entry.num_samples, entry.num_tokens, entry.num_entries))


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise damaged(path, error) from error

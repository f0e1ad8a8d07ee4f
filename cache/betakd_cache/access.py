"""Two ways to read the arrays of shards: through memory maps, or through positioned reads announced a batch ahead.

The data of an array lie raw at offset 0 of its chunk file, so neither parses anything. Maps are fastest while the cache
fits into memory; beyond that, a map reads page by page on demand, where announced reads keep the device busy.
"""

import functools
import operator
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from betakd_cache.errors import CacheError
from betakd_cache.journal import ShardEntry
from betakd_cache.layout import ArraySpec, Axis
from betakd_cache.rows import damaged
from betakd_cache.staging import Hold
from betakd_cache.zarr_arrays import CRC_BYTES, chunk_name

MAX_OPEN_FILES = 65_536
MAX_OPEN_SHARDS = 2048  # about 17 maps each; Linux allows a process 65,530

Ranges = tuple[list[int], list[int]]
"""Where the rows of each of B samples start, and where they stop."""
Buffer = bytes | memoryview


class Access(Protocol):
    """Reads rows of the arrays of a cache's shards."""

    def pointers(self, number: int) -> tuple[memoryview, memoryview]:
        """`sample_ptr` and `entry_ptr` `[S + 1]` of a shard."""

    def read(self, numbers: Sequence[int], ranges: Mapping[Axis, Ranges]) -> dict[str, list[Buffer]]:
        """Per array the bytes of each sample's rows: `ranges` along its axis, in shard `numbers`."""


class MappedAccess:
    """Slices of memory maps, which stay open."""

    def __init__(
        self, cache_path: Path, shards: Sequence[ShardEntry], specs: Mapping[str, ArraySpec], hold: Hold
    ) -> None:
        self._cache_path, self._shards, self._specs, self._hold = cache_path, shards, specs, hold
        self._columns = [
            (spec.name, operator.itemgetter(spec.name), spec.axis, spec.row_bytes)
            for spec in specs.values()
            if spec.axis != "boundary"
        ]
        self._shard = functools.lru_cache(MAX_OPEN_SHARDS)(self._map_shard)

    def pointers(self, number: int) -> tuple[memoryview, memoryview]:
        shard = self._shard(number)
        return shard.sample_ptr, shard.entry_ptr

    def read(self, numbers: Sequence[int], ranges: Mapping[Axis, Ranges]) -> dict[str, list[Buffer]]:
        # Slices of bytes cost half of what slices of arrays do, arrays with rows of one size share them, and `map`
        # cuts them out in half the time of a comprehension: this line is most of what reading costs.
        slices = {
            (axis, size): [slice(start * size, stop * size) for start, stop in zip(*ranges[axis], strict=True)]
            for axis, size in dict.fromkeys((axis, size) for _, _, axis, size in self._columns)
        }
        shards = [self._shard(number).content for number in numbers]
        return {
            name: list(map(operator.getitem, map(array_of, shards), slices[axis, size]))
            for name, array_of, axis, size in self._columns
        }

    def _map_shard(self, number: int) -> "_MappedShard":
        entry = self._shards[number]
        with self._hold(f"{entry.name}.zarr", entry):
            arrays = {name: map_array(self._cache_path, entry, spec) for name, spec in self._specs.items()}
        content = {name: memoryview(array).cast("B") for name, array in arrays.items()}  # type: ignore[arg-type]
        return _MappedShard(content["sample_ptr"].cast("I"), content["entry_ptr"].cast("Q"), content)


@dataclass(frozen=True, slots=True, eq=False)
class _MappedShard:
    sample_ptr: memoryview
    entry_ptr: memoryview
    content: Mapping[str, memoryview]


class PositionedAccess:
    """pread of exactly the rows asked for, after telling the kernel about all of them.

    Files stay open, the least recently used are closed: at most half of what the process may open.
    """

    def __init__(
        self, cache_path: Path, shards: Sequence[ShardEntry], specs: Mapping[str, ArraySpec], hold: Hold
    ) -> None:
        self._cache_path, self._shards, self._specs, self._hold = cache_path, shards, specs, hold
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._file = functools.lru_cache(min(most, MAX_OPEN_FILES))(self._open)
        self.pointers: Callable[[int], tuple[memoryview, memoryview]] = functools.cache(self._read_pointers)

    def read(self, numbers: Sequence[int], ranges: Mapping[Axis, Ranges]) -> dict[str, list[Buffer]]:
        specs = [spec for spec in self._specs.values() if spec.axis in ranges]
        for spec in specs:
            for number, start, stop in zip(numbers, *ranges[spec.axis], strict=True):
                offset, size = start * spec.row_bytes, (stop - start) * spec.row_bytes
                os.posix_fadvise(self._file(number, spec.name).number, offset, size, os.POSIX_FADV_WILLNEED)
        return {
            spec.name: [
                self._read(number, spec, start, stop)
                for number, start, stop in zip(numbers, *ranges[spec.axis], strict=True)
            ]
            for spec in specs
        }

    def _read_pointers(self, number: int) -> tuple[memoryview, memoryview]:
        size = self._shards[number].num_samples + 1
        sample_ptr, entry_ptr = (self._read(number, self._specs[name], 0, size) for name in ("sample_ptr", "entry_ptr"))
        return memoryview(sample_ptr).cast("I"), memoryview(entry_ptr).cast("Q")

    def _read(self, number: int, spec: ArraySpec, start: int, stop: int) -> bytes:
        size, offset = (stop - start) * spec.row_bytes, start * spec.row_bytes
        return os.pread(self._file(number, spec.name).number, size, offset)

    def _open(self, number: int, name: str) -> "_OpenFile":
        entry, spec = self._shards[number], self._specs[name]
        path = chunk_path(self._cache_path, entry, spec)
        try:
            with self._hold(f"{entry.name}.zarr", entry):
                file = _OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise damaged(path, error) from error
        check_size(path, entry, spec, os.fstat(file.number).st_size)
        return file


class _OpenFile:
    """A descriptor that is closed with the last reference to it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


ACCESSES: dict[str, Callable[[Path, Sequence[ShardEntry], Mapping[str, ArraySpec], Hold], Access]] = {
    "mmap": MappedAccess,
    "pread": PositionedAccess,
}


def chunk_path(cache_path: Path, entry: ShardEntry, spec: ArraySpec) -> Path:
    """The file that holds an array of a shard."""
    return cache_path / f"{entry.name}.zarr" / chunk_name(spec.name, 1 + len(spec.row_shape))


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

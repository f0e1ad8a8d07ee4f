"""A shard's arrays as memory maps: the data lie raw at offset 0 of each chunk file, so nothing is copied or parsed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from betakd_cache.errors import CacheError
from betakd_cache.journal import ShardEntry
from betakd_cache.layout import ArraySpec
from betakd_cache.rows import damaged
from betakd_cache.zarr_arrays import CRC_BYTES, chunk_name


def chunk_path(cache_path: Path, entry: ShardEntry, spec: ArraySpec) -> Path:
    """The file that holds an array of a shard."""
    return cache_path / f"{entry.name}.zarr" / chunk_name(spec.name, 1 if spec.width is None else 2)


def map_array(cache_path: Path, entry: ShardEntry, spec: ArraySpec) -> NDArray[Any]:
    """A read-only array over its chunk file; raises CacheError where the file is missing or of another size.

    pyarrow maps it because a closed pyarrow map lives on in its buffers without a file descriptor, where `mmap.mmap`
    holds one as long as it lives: a thousand shards would take sixteen thousand.
    """
    path = chunk_path(cache_path, entry, spec)
    shape = spec.shape(entry.num_samples, entry.num_tokens, entry.num_entries)
    size_bytes = int(np.prod(shape)) * spec.dtype.itemsize
    try:
        with pa.memory_map(str(path)) as file:
            if file.size() != size_bytes + CRC_BYTES:
                raise CacheError(
                    f"{path} is {file.size()} bytes long, expected {size_bytes + CRC_BYTES}; "
                    "restore it from a copy or write the cache again"
                )
            return np.frombuffer(file.read_buffer(size_bytes), spec.dtype).reshape(shape)
    except OSError as error:
        raise damaged(path, error) from error

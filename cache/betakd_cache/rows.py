"""The Parquet rows of the shards, read back."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from betakd_cache.errors import CacheError


def read_rows(paths: Iterable[Path], columns: Sequence[str] | None) -> pa.Table:
    """The rows of these Parquet files one after another, all columns or those named; None where a file lacks one.

    Raises CacheError for a file that cannot be read and for a column that is text in one shard and a number in another.
    """
    tables = []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
                tables.append(file.read(columns=known, use_threads=False))
        except (OSError, pa.ArrowException) as error:
            raise damaged(path, error) from error
    try:
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    except pa.ArrowTypeError as error:
        raise CacheError(
            f"rows hold text in one shard and numbers in another ({error}); ask for other columns"
        ) from error


def damaged(path: Path, error: Exception) -> CacheError:
    """The error for a file of a shard that cannot be read."""
    return CacheError(
        f"{path} cannot be read ({error}); run `betakd-pipe cache verify`, then restore it from a copy "
        "or write the cache again"
    )

"""Reading a cache: any samples in any order, at the speed of memory."""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from betakd_cache.access import ACCESSES, Ranges
from betakd_cache.batch import CompactBatch
from betakd_cache.errors import CacheError
from betakd_cache.journal import ShardEntry, journal_paths, read_journal
from betakd_cache.layout import RESERVED_COLUMNS, Axis, array_specs
from betakd_cache.manifest import Manifest, read_manifest
from betakd_cache.object_store import is_url
from betakd_cache.record import TeacherRecord
from betakd_cache.rows import read_rows
from betakd_cache.staging import LIMIT_BYTES, Hold, StagedCache, hold_nothing, stage

BOUNDED: tuple[tuple[Axis, Callable[[Any], Any]], ...] = (
    ("token", operator.itemgetter(0)),
    ("entry", operator.itemgetter(1)),
)
"""Axes along which samples differ in length, with the place of their boundaries in `Access.pointers`."""


def open_cache(
    path: Path | str,
    *,
    allow_incomplete: bool = False,
    access: str = "mmap",
    staging: Path | str | None = None,
    staging_limit_bytes: int = LIMIT_BYTES,
) -> "TeacherCache":
    """The cache at `path`, a folder or an URL, of which only the manifest and the journals have been read.

    `access` is "mmap", or "pread" for a cache larger than memory. Shards of a cache in an object store are fetched into
    the folder `staging` (by default under the user's cache folder) when they are first read; the least recently used
    make room once all of them there exceed `staging_limit_bytes`.

    Raises CacheError where there is none, where it is damaged or of another format version, and where it is still being
    written unless `allow_incomplete` asks for the committed shards.
    """
    if access not in ACCESSES:
        raise CacheError(f"access is {access!r}; choose from {', '.join(ACCESSES)}")
    staged = stage(path, staging, staging_limit_bytes) if is_url(path) else None
    folder = staged.folder if staged else Path(path)
    manifest = read_manifest(folder)
    if manifest.state != "complete" and not allow_incomplete:
        raise CacheError(
            f"{path} is incomplete; run the command that writes it once more, it resumes, or allow an incomplete cache"
        )
    journals = [read_journal(journal, with_files=staged is not None) for journal in journal_paths(folder)]
    shards = [entry for content in journals for entry in content.shards]
    if manifest.state == "complete" and len(shards) != manifest.counts.num_shards:
        raise CacheError(
            f"{path} has journals that list {len(shards)} shards, expected {manifest.counts.num_shards}; "
            "restore it from a copy or write the cache again"
        )
    rejected = {sample_id: reason for content in journals for sample_id, reason in content.rejected.items()}
    settings = {"allow_incomplete": allow_incomplete, "access": access}
    if staged:
        settings |= {"staging": staging, "staging_limit_bytes": staging_limit_bytes}
    return TeacherCache(staged or folder, manifest, shards, rejected, settings)


class TeacherCache:
    """A cache open for reading. Processes share it by its path: pickling it sends that, forking costs nothing."""

    path: Path
    """The folder of the cache, or where its shards are staged."""
    location: Path | str
    """The folder or the URL of the cache."""
    manifest: Manifest
    rejected: Mapping[str, str]
    """Ids of the samples that could not be scored, with the reasons."""

    def __init__(
        self,
        place: Path | StagedCache,
        manifest: Manifest,
        shards: Sequence[ShardEntry],
        rejected: Mapping[str, str],
        settings: Mapping[str, Any],
    ) -> None:
        """Use `open_cache`; `settings` are its arguments."""
        self._staged = place if isinstance(place, StagedCache) else None
        self.path = place.folder if isinstance(place, StagedCache) else place
        self.location = place.store.url if isinstance(place, StagedCache) else place
        self.manifest, self.rejected = manifest, rejected
        self._shards = tuple(shards)
        self._settings = dict(settings)
        self._specs = {spec.name: spec for spec in array_specs(manifest.rules)}
        self._bounds = np.cumsum([0, *(entry.num_samples for entry in shards)])
        self._access = ACCESSES[settings["access"]](self.path, self._shards, self._specs, self._hold)
        self._shard_rows = functools.lru_cache(1)(self._read_shard_rows)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(open_cache, **self._settings), (self.location,)

    @functools.cached_property
    def sample_ids(self) -> pa.StringArray:
        """The ids of all samples in index order, an Arrow string array `[len]`."""
        if not self._shards:
            return pa.array([], pa.string())
        return self.rows(["sample_id"])["sample_id"].combine_chunks()

    def index_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The indices `[len(ids)]` of samples by id; one pass over the cache for all of them together.

        Raises CacheError naming the first id the cache does not hold.
        """
        wanted = pa.array(ids, pa.string()).dictionary_encode()
        # The table of hashes is built over the ids asked for, not over the cache, which may be far larger.
        found = pc.index_in(self.sample_ids, value_set=wanted.dictionary)
        places = np.full(len(wanted.dictionary), -1)
        held = found.is_valid().to_numpy(zero_copy_only=False)
        places[found.drop_null().to_numpy()] = np.flatnonzero(held)
        missing = wanted.dictionary.filter(pa.array(places < 0))
        if len(missing):
            raise CacheError(
                f"{self.location} does not hold sample {missing[0].as_py()!r} "
                f"({len(missing)} of {len(places)} are missing); use the data it was written from, "
                "or write a cache for these samples"
            )
        return places[wanted.indices.to_numpy()]

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The Parquet rows of all samples in index order, all columns or those named."""
        if self._staged:
            self._staged.fetch_rows(self._shards)
        table = read_rows(self._rows_paths(self._shards), columns)
        missing = [name for name in columns or () if name not in table.column_names]
        if missing and self._shards:
            names = self._shard_rows(0).column_names
            raise CacheError(f"{self.location} has no row column {missing[0]!r}; choose from {', '.join(names)}")
        return table

    def shard_ranges(self) -> list[tuple[int, int]]:
        """The indices (start, stop) of the samples of every shard, for tools that go through a cache in order."""
        return list(zip(self._bounds[:-1].tolist(), self._bounds[1:].tolist(), strict=True))

    def rows_of_shard(self, start: int) -> pa.Table:
        """The Parquet rows of the shard whose first sample has index `start`."""
        return self._shard_rows(int(np.searchsorted(self._bounds, start)))

    def batch(self, indices: ArrayLike) -> CompactBatch:
        """The samples of these indices, in this order, as stored. Raises IndexError for an index out of range."""
        wanted = np.asarray(indices, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"indices reach from {wanted.min()} to {wanted.max()}, the cache has {len(self)} samples")
        numbers = np.searchsorted(self._bounds, wanted, side="right") - 1
        places = (wanted - self._bounds[numbers]).tolist()
        ends = [place + 1 for place in places]
        shards = numbers.tolist()
        ranges: dict[Axis, Ranges] = {"sample": (places, ends)}
        pointers = [self._access.pointers(number) for number in shards]
        for axis, of_axis in BOUNDED:
            tables = list(map(of_axis, pointers))
            ranges[axis] = (list(map(operator.getitem, tables, places)), list(map(operator.getitem, tables, ends)))
        pieces = self._access.read(shards, ranges)
        arrays = {}
        for name, parts in pieces.items():
            spec = self._specs[name]
            rows = np.frombuffer(bytearray().join(parts), spec.dtype)  # a bytearray, so that tensors may share it
            arrays[name] = rows.reshape(-1, *spec.row_shape) if spec.row_shape else rows
        return CompactBatch(arrays, _pointers(ranges["token"]), _pointers(ranges["entry"]))

    def record(self, index: int) -> TeacherRecord:
        """One sample as the teacher gave it, within the precision of the format."""
        batch = self.batch([index])
        number = int(np.searchsorted(self._bounds, index, side="right")) - 1
        row = self._shard_rows(number).slice(index - self._bounds[number], 1).to_pylist()[0]
        held = {name: bool(batch.arrays[f"present/{name}"][0]) for name in batch.feature_names()}
        return TeacherRecord(
            sample_id=row["sample_id"],
            token_ids=batch.token_ids(),
            entry_counts=batch.arrays["tok_n"].astype(np.int64),
            ids=batch.ids(),
            gaps=batch.gaps(),
            gold_gap=batch.float32("gold_gap"),
            tail_lse=batch.float32("tail_lse"),
            tail_energy=batch.optional("tail_energy"),
            logit_max=batch.optional("logit_max"),
            logit_mean=batch.optional("logit_mean"),
            logit_std=batch.optional("logit_std"),
            features={name: batch.feature(name)[0] for name in batch.feature_names() if held[name]},
            focus={name: batch.focus(name)[0] for name in batch.focus_names() if held[name]},
            row={name: value for name, value in row.items() if name not in RESERVED_COLUMNS},
        )

    @property
    def _hold(self) -> Hold:
        return self._staged.hold if self._staged else hold_nothing

    def _rows_paths(self, entries: Iterable[ShardEntry]) -> Iterator[Path]:
        """Every file is there until the next one is asked for."""
        for entry in entries:
            with self._hold(f"{entry.name}.parquet", entry):
                yield self.path / f"{entry.name}.parquet"

    def _read_shard_rows(self, number: int) -> pa.Table:
        return read_rows(self._rows_paths([self._shards[number]]), None)


def _pointers(ranges: Ranges) -> NDArray[np.int64]:
    """The running sum `[B + 1]` of the lengths of ranges."""
    return np.cumsum([0, *map(operator.sub, ranges[1], ranges[0])])

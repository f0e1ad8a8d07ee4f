"""Writing a cache: records in, committed shards out; what is committed survives anything.

A shard is written under `.tmp-*`, synced, renamed to its final name, and then listed in the journal: only a listed
shard exists. A writer that dies loses the records since its last commit and nothing else; the next one clears up.

A complete cache that gets a new sample is open again: its manifest says so before its journal lists the sample.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from betakd_cache import files
from betakd_cache.completion import REJECTED_NAME, clear_abandoned_parts, complete_manifest
from betakd_cache.encode import encode_shard
from betakd_cache.errors import CacheError
from betakd_cache.folder import check_place, remove_cache, remove_unused, stored_ids
from betakd_cache.journal import (
    WHOLE,
    Journal,
    Part,
    ShardEntry,
    clear_uncommitted,
    journal_name,
    read_journal,
    shard_name,
)
from betakd_cache.layout import CacheRules, FeatureDtype, FeatureLayout
from betakd_cache.manifest import MANIFEST_NAME, Manifest, check_same, plain_identity, read_manifest
from betakd_cache.object_store import is_url
from betakd_cache.record import TeacherRecord, check_records
from betakd_cache.token_rule import TokenRule
from betakd_cache.zarr_arrays import write_group

MAX_SHARD_ENTRIES = 2**26  # an exact cache of a large vocabulary commits earlier than `shard_samples` says


class CacheWriter:
    """The open end of a cache: `append` or `reject` samples, then `complete`. Use it as a context manager."""

    path: Path
    location: Path | str
    """What the user calls it."""
    stored: set[str]
    """Ids that the cache holds or has rejected for good, over all parts as of `open`; pending records are not in it."""

    def __init__(self, path: Path, rules: CacheRules, part: Part, shard_samples: int, journal: Journal) -> None:
        """Use `open`."""
        self.path = self.location = path
        self._rules, self._part, self._journal = rules, part, journal
        self._shard_samples = min(shard_samples, rules.max_shard_samples)
        self._made_folder = False
        self._num_shards = len(journal.content.shards)
        self._pending: dict[str, TeacherRecord] = {}
        self._pending_entries = 0
        self._column_kinds: dict[str, str] = {}
        self.stored = stored_ids(path)
        clear_uncommitted(path, shard_name(part, self._num_shards))

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        identity: Mapping[str, Any],
        token_rule: TokenRule,
        vocabulary_size: int,
        feature_sizes: Mapping[str, int],
        logit_moments: bool = True,
        feature_layouts: Mapping[str, FeatureLayout] | None = None,
        feature_dtype: FeatureDtype = "float16",
        tail_energies: bool = True,
        shard_samples: int = 1024,
        overwrite: bool = False,
        part: Part = WHOLE,
    ) -> Self:
        """What `open_with` gives for the rules that these arguments make."""
        rules = CacheRules(
            token_rule,
            vocabulary_size,
            dict(feature_sizes),
            logit_moments,
            dict(feature_layouts or {}),
            feature_dtype,
            tail_energies,
        )
        return cls.open_with(path, identity, rules, shard_samples=shard_samples, overwrite=overwrite, part=part)

    @classmethod
    def open_with(
        cls,
        path: Path | str,
        identity: Mapping[str, Any],
        rules: CacheRules,
        *,
        shard_samples: int = 1024,
        overwrite: bool = False,
        part: Part = WHOLE,
    ) -> Self:
        """A writer for a new cache, or for an existing one of the same identity and rules, which it resumes or extends.

        `part` (i, n) lets n processes write disjoint samples into one cache; the last to complete completes the cache.
        Raises CacheError where `path` holds another cache or something else, or where the part has a writer already.
        """
        if not 0 <= part[0] < part[1] or shard_samples < 1:
            raise CacheError(
                f"part is {part}, shard_samples {shard_samples}; give (i, n) with 0 <= i < n, and at least 1"
            )
        wanted = Manifest(plain_identity(identity), rules)
        if is_url(path):
            from betakd_cache.store_writer import StoreWriter  # a CacheWriter itself

            return cast(Self, StoreWriter.open_store(path, wanted, part, shard_samples, overwrite))
        path = Path(path)
        if overwrite:
            remove_cache(path, part)
        check_place(path, wanted)
        is_new = not path.exists()
        files.make_directory(path)
        with contextlib.ExitStack() as on_failure:
            journal = Journal(path, part)
            on_failure.callback(journal.close)
            temporary = path / f".tmp-{MANIFEST_NAME}-{part[0]}-of-{part[1]}"
            if not files.create_whole(path / MANIFEST_NAME, temporary, wanted.to_bytes()):
                check_same(path, read_manifest(path), wanted)
            writer = cls(path, rules, part, shard_samples, journal)
            writer._made_folder = is_new
            on_failure.pop_all()
        return writer

    def append(self, record: TeacherRecord) -> None:
        """Take a record; every `shard_samples` of them are committed. Raises CacheError for what cannot be stored."""
        self.extend([record])

    def extend(self, records: Sequence[TeacherRecord]) -> None:
        """Take a batch of records, all of them or, with a CacheError that names the first culprit, none."""
        for record in records:
            self._check_new(record.sample_id)
        if len({record.sample_id for record in records}) < len(records):
            raise CacheError(f"a batch for {self.location} holds a sample twice; give every sample once")
        if not records:
            return
        check_records(records, self._rules)
        self._check_columns(records)
        for record in records:
            self._pending[record.sample_id] = record
            self._pending_entries += len(record.ids)
            if len(self._pending) >= self._shard_samples or self._pending_entries >= MAX_SHARD_ENTRIES:
                self.flush()

    def reject(self, sample_id: str, reason: str) -> None:
        """Note, for good, that a sample cannot be scored; it counts as stored when the cache is resumed."""
        self._check_new(sample_id)
        with self._reopened():
            self._journal.append_rejected(sample_id, reason)
        self.stored.add(sample_id)

    def flush(self) -> None:
        """Commit the pending records as a shard."""
        if not self._pending:
            return
        records = list(self._pending.values())
        self._commit(*encode_shard(records, self._rules))
        self._pending.clear()
        self._pending_entries = 0

    def append_shard(self, arrays: Mapping[str, NDArray[Any]], rows: pa.Table) -> None:
        """Commit a whole shard as another cache of these rules stores it, for tools that need no record."""
        self.flush()
        for sample_id in rows["sample_id"].to_pylist():
            self._check_new(sample_id)
        self._commit(arrays, rows)

    def complete(self) -> bool:
        """True if the cache is complete now; False while other parts of it are still being written."""
        self.flush()
        with _manifest_lock(self.path):
            if read_manifest(self.path).state == "complete":
                return True
            self._journal.append_complete()
            paths = [self.path / journal_name((number, self._part[1])) for number in range(self._part[1])]
            if not all(path.exists() and read_journal(path).complete for path in paths):
                return False
            clear_abandoned_parts(self.path)
            complete_manifest(self.path, self._part)
            return True

    def close(self) -> None:
        """Let go of the cache; pending records are lost unless `flush` came before."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
            elif self._made_folder:
                remove_unused(self.path, self._part)
        finally:
            self.close()

    def _check_new(self, sample_id: str) -> None:
        if sample_id in self.stored or sample_id in self._pending:
            raise CacheError(f"{self.location} holds sample {sample_id!r} already; skip the ids in `stored`")

    def _check_columns(self, records: Sequence[TeacherRecord]) -> None:
        kinds = dict(self._column_kinds)
        for record in records:
            for name, value in record.row.items():
                kind = "text" if isinstance(value, str) else "a number"
                if value is not None and kinds.setdefault(name, kind) != kind:
                    raise CacheError(
                        f"sample {record.sample_id!r}: row column {name!r} holds {value!r}, which is {kind}, expected "
                        f"{kinds[name]} as in the samples before; give a column one kind of value"
                    )
        self._column_kinds = kinds

    def _commit(self, arrays: Mapping[str, NDArray[Any]], rows: pa.Table) -> None:
        name = self._next_shard()
        clear_uncommitted(self.path, name)
        entry = self._write_shard(name, arrays, rows)
        with self._reopened():
            self._journal.append_shard(entry)
        self._num_shards += 1
        self.stored.update(rows["sample_id"].to_pylist())

    def _next_shard(self) -> str:
        return shard_name(self._part, self._num_shards)

    @contextlib.contextmanager
    def _reopened(self) -> Iterator[None]:
        """The manifest says "open" while the journal gets a line, and no other part completes the cache meanwhile."""
        with _manifest_lock(self.path):
            manifest = read_manifest(self.path)
            if manifest.state == "complete":
                temporary = self.path / f".tmp-{MANIFEST_NAME}-{self._part[0]}-of-{self._part[1]}"
                reopened = Manifest(manifest.identity, manifest.rules)
                files.replace_whole(self.path / MANIFEST_NAME, temporary, reopened.to_bytes())
                files.remove(self.path / REJECTED_NAME)
            yield

    def _write_shard(self, name: str, arrays: Mapping[str, NDArray[Any]], rows: pa.Table) -> ShardEntry:
        """The entry of a shard whose files are synced and under their final names."""
        temporary = self.path / f".tmp-{name}"
        group, table = f"{name}.zarr", f"{name}.parquet"
        files.make_directory(temporary)
        written = {f"{group}/{key}": value for key, value in write_group(temporary / group, arrays).items()}
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer)
        written[table] = files.write(temporary / table, buffer.getvalue())
        directories = {str(parent) for key in written for parent in Path(key).parents if parent.name}
        files.sync([temporary / key for key in [*written, *sorted(directories)]])
        files.rename(temporary / group, self.path / group)
        files.rename(temporary / table, self.path / table)
        files.remove(temporary)
        files.sync([self.path])
        return ShardEntry(name, rows.num_rows, len(arrays["token_ids"]), len(arrays["ids"]), written)


@contextlib.contextmanager
def _manifest_lock(path: Path) -> Iterator[None]:
    """Waits until no other part of the cache at `path` holds its manifest's state; a dead process gives up its lock."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

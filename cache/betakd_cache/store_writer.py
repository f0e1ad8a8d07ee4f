"""Writing a cache to an object store: shards are made in a local folder, sent, and then committed.

The names of shards end in a word of the writer's own, so two writers of one part never replace each other's files; only
one of them gets to commit. What the other one and writers that died have sent is removed when the cache is completed,
after the last commit of every part, which no late writer can follow.
"""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from numpy.typing import NDArray

from betakd_cache import files
from betakd_cache.commits import COMMITS, StoreJournal, write_mirror
from betakd_cache.completion import REJECTED_NAME, complete_manifest
from betakd_cache.errors import CacheError
from betakd_cache.journal import (
    JOURNAL_NAME,
    WHOLE,
    JournalContent,
    Part,
    ShardEntry,
    journal_name,
    journal_paths,
    part_of,
    read_journal,
    shard_name,
)
from betakd_cache.layout import ArraySpec, array_specs
from betakd_cache.manifest import MANIFEST_NAME, Manifest, check_same, parse_manifest, read_manifest
from betakd_cache.object_store import ObjectStore
from betakd_cache.writer import CacheWriter


class StoreWriter(CacheWriter):
    """The open end of a cache in an object store. `path` is the folder of its mirror, gone after `close`."""

    @classmethod
    def open_store(cls, url: str, wanted: Manifest, part: Part, shard_samples: int, overwrite: bool) -> Self:
        """A writer for the cache at `url`; raises CacheError as `CacheWriter.open` does."""
        store = ObjectStore(url)
        store.check_writable()
        if overwrite:
            _remove_cache(store, part)
        content = store.find(MANIFEST_NAME)
        if content is None:
            _check_free(store)
            store.create(MANIFEST_NAME, wanted.to_bytes())
            content = store.read(MANIFEST_NAME)
        manifest = parse_manifest(store.url, content)
        check_same(store.url, manifest, wanted)
        with contextlib.ExitStack() as on_failure:
            folder = Path(tempfile.mkdtemp(prefix="betakd-pipe-writer-"))
            on_failure.callback(shutil.rmtree, folder)
            write_mirror(store, manifest, folder)
            _fetch(store, folder, {".parquet"})
            journal = StoreJournal(folder, part, store, manifest)
            on_failure.callback(journal.close)
            writer = cls(folder, wanted.rules, part, shard_samples, journal)
            writer.location, writer._store = store.url, store
            writer._word = secrets.token_hex(4)
            on_failure.pop_all()
        return writer

    _store: ObjectStore
    _word: str

    def complete(self) -> bool:
        """True if the cache is complete now; False while other parts of it are still being written."""
        self.flush()
        if self._is_complete():
            return True
        self._journal.append_complete()
        write_mirror(self._store, read_manifest(self._store.url), self.path, own=journal_name(self._part))
        parts = {part_of(path): read_journal(path) for path in journal_paths(self.path)}
        if not all((number, self._part[1]) in parts for number in range(self._part[1])):
            return False
        if not all(content.complete for part, content in parts.items() if part[1] == self._part[1]):
            return False
        self._end_abandoned_parts(parts)
        _fetch(self._store, self.path, {".parquet", *(f"/{spec.name}/" for spec in self._sample_arrays())})
        complete_manifest(self.path, self._part)
        self._store.upload(self.path, [REJECTED_NAME, *(path.name for path in journal_paths(self.path))])
        self._remove_uncommitted()
        self._store.write(MANIFEST_NAME, (self.path / MANIFEST_NAME).read_bytes())
        return True

    def close(self) -> None:
        """Let go of the cache; pending records are lost unless `flush` came before."""
        super().close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _sample_arrays(self) -> list[ArraySpec]:
        return [spec for spec in array_specs(self._rules) if spec.axis == "sample"]

    def _is_complete(self) -> bool:
        return read_manifest(self._store.url).state == "complete"

    @contextlib.contextmanager
    def _reopened(self) -> Iterator[None]:
        """A complete cache in an object store stays as it is: readers need not look twice."""
        if read_manifest(self.path).state == "complete":
            raise CacheError(f"{self.location} is complete; write further samples to another cache and merge the two")
        yield

    def _next_shard(self) -> str:
        return f"{shard_name(self._part, self._num_shards)}-{self._word}"

    def _commit(self, arrays: Mapping[str, NDArray[Any]], rows: pa.Table) -> None:
        name = self._next_shard()
        super()._commit(arrays, rows)
        files.remove(self.path / f"{name}.zarr")

    def _end_abandoned_parts(self, parts: Mapping[Part, JournalContent]) -> None:
        """Writers of an earlier division into parts can commit nothing any more."""
        manifest = read_manifest(self.path)
        for part, content in parts.items():
            if not content.complete:
                with contextlib.closing(StoreJournal(self.path, part, self._store, manifest)) as abandoned:
                    abandoned.append_complete()

    def _remove_uncommitted(self) -> None:
        committed = {name.partition("/")[0] for entry in _entries(self.path) for name in entry.files}
        names = [name for name in self._store.sizes() if name.startswith("shard-")]
        self._store.remove([name for name in names if name.partition("/")[0] not in committed])


def _entries(folder: Path) -> list[ShardEntry]:
    return [entry for path in journal_paths(folder) for entry in read_journal(path).shards]


def _fetch(store: ObjectStore, folder: Path, wanted: set[str]) -> None:
    """Bring those files of all committed shards into the mirror that have one of these in their names."""
    names = [name for entry in _entries(folder) for name in entry.files if any(part in name for part in wanted)]
    store.download([name for name in names if not (folder / name).exists()], folder, lambda name, content: None)


def _check_free(store: ObjectStore) -> None:
    """Nothing; raises CacheError where there are other objects."""
    for name in store.sizes():
        raise CacheError(f"{store.url} holds {name} and is not a cache; give an URL below which there is nothing")


def _remove_cache(store: ObjectStore, part: Part) -> None:
    """Delete the objects of a cache, if there is one. A writer that is still at work can commit nothing to the next."""
    if part != WHOLE:
        raise CacheError(
            f"part {part[0]} of {part[1]} cannot overwrite {store.url}; remove the cache, then start all parts"
        )
    content = store.find(MANIFEST_NAME)
    if content is None:
        return
    manifest = parse_manifest(store.url, content)  # what is not a cache is not overwritten either
    store.write(MANIFEST_NAME, Manifest(manifest.identity, manifest.rules).to_bytes())  # nobody reads half a cache
    names = [name for name in store.sizes() if name != MANIFEST_NAME and _is_ours(name)]
    store.remove(names)
    store.remove([MANIFEST_NAME])


def _is_ours(name: str) -> bool:
    top = name.partition("/")[0]
    return top in (COMMITS, REJECTED_NAME) or top.startswith("shard-") or bool(JOURNAL_NAME.fullmatch(top))

"""Commits of a cache in an object store: every line of a journal is an object of its own, numbered and never replaced.

An object store has neither appending nor locks nor renaming, but it creates an object only where there is none: of two
writers that add line n of a journal, one does. The names hold a hash of the cache's identity and rules, so that a
writer of a cache that was overwritten meanwhile commits nothing to the new one.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from betakd_cache import files
from betakd_cache.errors import CacheError
from betakd_cache.journal import JOURNAL_NAME, Journal, Part, ShardEntry, journal_line, journal_name
from betakd_cache.manifest import MANIFEST_NAME, Manifest
from betakd_cache.object_store import ObjectStore

COMMITS = "commits"


def commit_folder(manifest: Manifest) -> str:
    """The prefix of all commits of caches of this identity and these rules."""
    opened = Manifest(manifest.identity, manifest.rules).to_bytes()
    return f"{COMMITS}/{hashlib.sha256(opened).hexdigest()[:16]}"


def committed_journals(store: ObjectStore, manifest: Manifest) -> dict[str, bytes]:
    """The journals that the commits of a cache add up to, by name. Raises CacheError where a commit is missing."""
    folder = commit_folder(manifest)
    names: dict[str, list[str]] = {}
    for name in sorted(store.sizes(folder)):
        journal, _, number = name.removeprefix(f"{folder}/").partition("/")
        before = names.setdefault(journal, [])
        if not JOURNAL_NAME.fullmatch(journal) or number != f"{len(before):08d}":
            raise CacheError(
                f"{store.url} has commit {name}, expected {folder}/{journal}/{len(before):08d}; "
                "restore what is missing from a copy or write the cache again"
            )
        before.append(name)
    return {journal: b"".join(store.read_all(parts)) for journal, parts in names.items()}


def finished_journals(store: ObjectStore, manifest: Manifest) -> dict[str, bytes]:
    """The journals that a complete manifest names; nothing is listed. Raises CacheError where one is not as written."""
    names = [name for name in manifest.files if JOURNAL_NAME.fullmatch(name)]
    journals = dict(zip(names, store.read_all(names), strict=True))
    for name, content in journals.items():
        if hashlib.sha256(content).hexdigest() != manifest.files[name]:
            raise changed(store, name)
    return journals


def write_mirror(store: ObjectStore, manifest: Manifest, folder: Path, *, own: str = "") -> None:
    """Put the manifest and the journals of a cache into a folder; the journal named `own` is left as it is."""
    read = finished_journals if manifest.state == "complete" else committed_journals
    for name, content in {MANIFEST_NAME: manifest.to_bytes(), **read(store, manifest)}.items():
        if name != own:
            files.replace_whole(folder / name, folder / f".tmp-{name}", content)


def changed(store: ObjectStore, name: str) -> CacheError:
    """The error for an object that is not what was written."""
    return CacheError(
        f"{store.url}/{name} is not what was written, its sha256 differs; "
        "restore it from a copy or write the cache again"
    )


class StoreJournal(Journal):
    """A journal whose every line is committed to an object store before it is noted in the folder of its mirror."""

    def __init__(self, folder: Path, part: Part, store: ObjectStore, manifest: Manifest) -> None:
        """The mirror of the journal is in `folder` already."""
        super().__init__(folder, part)
        self._folder, self._part, self._store = folder, part, store
        self._commits = f"{commit_folder(manifest)}/{journal_name(part)}"
        self._num_commits = len(self.path.read_bytes().splitlines())

    def append_shard(self, entry: ShardEntry) -> None:
        """Send a shard's files, then commit it."""
        self._store.upload(self._folder, list(entry.files))
        super().append_shard(entry)

    def _append(self, fields: Mapping[str, Any]) -> None:
        name = f"{self._commits}/{self._num_commits:08d}"
        if not self._store.create(name, journal_line(fields)):
            raise CacheError(
                f"{self._store.url} is being written by another process (part {self._part[0]} of {self._part[1]}), "
                f"which made commit {self._num_commits} first; wait for it or stop it"
            )
        self._num_commits += 1
        super()._append(fields)

"""Auditing a cache: every byte of it against the hashes taken when it was written."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from betakd_cache.commits import COMMITS, commit_folder, committed_journals, write_mirror
from betakd_cache.errors import CacheError
from betakd_cache.journal import JournalContent, ShardEntry, journal_paths, read_journal
from betakd_cache.manifest import MANIFEST_NAME, Manifest, read_manifest
from betakd_cache.object_store import ObjectStore, is_url


@dataclass(frozen=True, slots=True)
class Verification:
    """What an audit found: the files and bytes it read, and one line per problem."""

    path: str
    num_files: int
    size_bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if there is no problem."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"problems": list(self.problems), "ok": self.ok}


class Objects(Protocol):
    """The files of a cache, wherever it is."""

    def sizes(self) -> Mapping[str, int]:
        """The sizes in bytes of all files by their paths inside the cache."""

    def sha256(self, name: str) -> str:
        """The sha256 of one."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a cache on disk."""

    path: Path

    def sizes(self) -> dict[str, int]:
        """The sizes in bytes of all files by their paths inside the cache."""
        found = [file for file in sorted(self.path.rglob("*")) if file.is_file()]
        return {file.relative_to(self.path).as_posix(): file.stat().st_size for file in found}

    def sha256(self, name: str) -> str:
        """The sha256 of one."""
        with open(self.path / name, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path | str) -> Verification:
    """Every file that is missing, superfluous, or not what was written. Reads the whole cache.

    Raises CacheError where there is no cache, or no manifest that this program can read.
    """
    manifest = read_manifest(path)
    objects: Objects = ObjectStore(path) if is_url(path) else Folder(Path(path))
    try:
        journals = _journals(path, manifest)
    except CacheError as error:
        return Verification(str(path), 0, 0, (str(error),))
    shards = [entry for content in journals.values() for entry in content.shards]
    known = dict(_listed(shards))
    sizes = objects.sizes()
    commits = [name for name in sizes if name.startswith(f"{COMMITS}/")]
    listed = {MANIFEST_NAME, *journals, *manifest.files, *known, *commits}
    problems = [
        *_top_level_problems(objects, sizes, manifest, len(shards)),
        *(problem for name, stated in known.items() for problem in _file_problems(objects, sizes, name, *stated)),
        *_commit_problems(path, manifest, commits),
        *(f"{name} is superfluous, no journal lists it" for name in sizes if name not in listed),
    ]
    return Verification(str(path), len(known), sum(size_bytes for size_bytes, _ in known.values()), tuple(problems))


def _journals(path: Path | str, manifest: Manifest) -> dict[str, JournalContent]:
    if not is_url(path):
        return {journal.name: read_journal(journal) for journal in journal_paths(Path(path))}
    with tempfile.TemporaryDirectory() as folder:
        write_mirror(ObjectStore(path), manifest, Path(folder))
        return _journals(Path(folder), manifest)


def _commit_problems(path: Path | str, manifest: Manifest, commits: list[str]) -> Iterator[str]:
    """A complete cache keeps its commits, which must add up to its journals."""
    if not is_url(path) or not commits or manifest.state != "complete":
        return
    try:
        journals = committed_journals(ObjectStore(path), manifest)
    except CacheError as error:
        yield str(error)
        return
    for name, content in journals.items():
        if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
            yield f"{commit_folder(manifest)}/{name} is not what was written, its sha256 differs"


def _listed(shards: list[ShardEntry]) -> Iterator[tuple[str, tuple[int, str]]]:
    for entry in shards:
        yield from entry.files.items()


def _top_level_problems(
    objects: Objects, sizes: Mapping[str, int], manifest: Manifest, num_shards: int
) -> Iterator[str]:
    if manifest.state == "complete" and num_shards != manifest.counts.num_shards:
        yield f"the journals list {num_shards} shards, the manifest {manifest.counts.num_shards}"
    for name, sha256 in manifest.files.items():
        if name not in sizes:
            yield f"{name} is missing"
        elif objects.sha256(name) != sha256:
            yield f"{name} is not what was written, its sha256 differs"


def _file_problems(
    objects: Objects, sizes: Mapping[str, int], name: str, size_bytes: int, sha256: str
) -> Iterator[str]:
    if name not in sizes:
        yield f"{name} is missing"
    elif sizes[name] != size_bytes:
        yield f"{name} is {sizes[name]} bytes long, expected {size_bytes}"
    elif objects.sha256(name) != sha256:
        yield f"{name} is not what was written, its sha256 differs"

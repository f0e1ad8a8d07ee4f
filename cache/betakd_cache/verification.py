"""Auditing a cache: every byte of it against the hashes taken when it was written."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from betakd_cache.errors import CacheError
from betakd_cache.journal import ShardEntry, journal_paths, read_journal
from betakd_cache.manifest import MANIFEST_NAME, Manifest, read_manifest


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


def verify(path: Path | str) -> Verification:
    """Every file that is missing, superfluous, or not what was written. Reads the whole cache.

    Raises CacheError where there is no cache, or no manifest that this program can read.
    """
    path = Path(path)
    manifest = read_manifest(path)
    try:
        shards = [entry for journal in journal_paths(path) for entry in read_journal(journal).shards]
    except CacheError as error:
        return Verification(str(path), 0, 0, (str(error),))
    known = dict(_listed(shards))
    journal_names = {journal.name for journal in journal_paths(path)}
    problems = [
        *_top_level_problems(path, manifest, len(shards)),
        *(problem for name, stated in known.items() for problem in _file_problems(path, name, *stated)),
        *_superfluous(path, {MANIFEST_NAME, *journal_names, *manifest.files, *known}),
    ]
    return Verification(str(path), len(known), sum(size_bytes for size_bytes, _ in known.values()), tuple(problems))


def _listed(shards: list[ShardEntry]) -> Iterator[tuple[str, tuple[int, str]]]:
    for entry in shards:
        yield from entry.files.items()


def _top_level_problems(path: Path, manifest: Manifest, num_shards: int) -> Iterator[str]:
    if manifest.state == "complete" and num_shards != manifest.counts.num_shards:
        yield f"the journals list {num_shards} shards, the manifest {manifest.counts.num_shards}"
    for name, sha256 in manifest.files.items():
        if not (path / name).is_file():
            yield f"{name} is missing"
        elif hashlib.sha256((path / name).read_bytes()).hexdigest() != sha256:
            yield f"{name} is not what was written, its sha256 differs"


def _file_problems(path: Path, name: str, size_bytes: int, sha256: str) -> Iterator[str]:
    file = path / name
    if not file.is_file():
        yield f"{name} is missing"
    elif file.stat().st_size != size_bytes:
        yield f"{name} is {file.stat().st_size} bytes long, expected {size_bytes}"
    else:
        with open(file, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                yield f"{name} is not what was written, its sha256 differs"


def _superfluous(path: Path, known: set[str]) -> Iterator[str]:
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and name not in known:
            yield f"{name} is superfluous, no journal lists it"

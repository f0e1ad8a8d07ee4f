"""The journals of a cache: one synced line per committed shard, rejected sample and finished part.

A cache written by one process has `shards.jsonl`; part i of n writes `shards-i-of-n.jsonl`. A shard exists if and only
if a journal lists it.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_cache import files
from betakd_cache.errors import CacheError

Part = tuple[int, int]
WHOLE: Part = (0, 1)
JOURNAL_NAME = re.compile(r"shards(?:-(\d+)-of-(\d+))?\.jsonl")


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A committed shard: its name, its counts, and size in bytes and sha256 of its files by path inside the cache."""

    name: str
    num_samples: int
    num_tokens: int
    num_entries: int
    files: Mapping[str, tuple[int, str]]

    @property
    def size_bytes(self) -> int:
        """The size of all its files."""
        return sum(size_bytes for size_bytes, _ in self.files.values())


@dataclass(frozen=True, slots=True)
class JournalContent:
    """What the whole lines of a journal say; `size_bytes` is where the last whole line ends."""

    shards: tuple[ShardEntry, ...]
    rejected: Mapping[str, str]
    complete: bool
    size_bytes: int


def journal_name(part: Part) -> str:
    """The file name of a part's journal."""
    return "shards.jsonl" if part == WHOLE else f"shards-{part[0]}-of-{part[1]}.jsonl"


def shard_name(part: Part, number: int) -> str:
    """The name, without suffix, of a part's shard."""
    return f"shard-{number:06d}" if part == WHOLE else f"shard-{part[0]}-of-{part[1]}-{number:06d}"


def part_of(journal: Path) -> Part:
    """The part whose journal this is."""
    match = JOURNAL_NAME.fullmatch(journal.name)
    assert match is not None, journal
    return WHOLE if match[1] is None else (int(match[1]), int(match[2]))


def journal_paths(cache_path: Path) -> list[Path]:
    """The journals of a cache: the whole one first, then parts in numerical order."""
    journals = [path for path in cache_path.iterdir() if JOURNAL_NAME.fullmatch(path.name)]
    return sorted(journals, key=lambda path: part_of(path)[::-1])


def read_journal(path: Path, *, with_files: bool = True) -> JournalContent:
    """What a journal says. A last line without an end was being written when its process died, and does not count.

    Without `with_files` the entries list no files: a reader of a large cache would hold tens of megabytes of hashes.
    Raises CacheError where a whole line is not what this package writes.
    """
    content = path.read_bytes()
    size_bytes = content.rfind(b"\n") + 1
    shards: list[ShardEntry] = []
    rejected: dict[str, str] = {}
    complete = False
    for number, line in enumerate(content[:size_bytes].splitlines(), start=1):
        try:
            fields = json.loads(line)
            if "shard" in fields:
                shards.append(_shard_entry(fields, with_files))
                complete = False  # a part that was complete is being written again, as it is by a rejected line
            elif "rejected" in fields:
                rejected[fields["rejected"]] = fields["reason"]
                complete = False
            else:
                complete = fields["complete"]
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"{path} is damaged at line {number} ({error!r}); restore it from a copy or write the cache again"
            ) from error
    return JournalContent(tuple(shards), rejected, complete, size_bytes)


def _shard_entry(fields: Mapping[str, Any], with_files: bool) -> ShardEntry:
    listed = fields["files"] if with_files else {}
    return ShardEntry(
        name=fields["shard"],
        num_samples=fields["num_samples"],
        num_tokens=fields["num_tokens"],
        num_entries=fields["num_entries"],
        files={name: (size_bytes, sha256) for name, (size_bytes, sha256) in listed.items()},
    )


def journal_line(fields: Mapping[str, Any]) -> bytes:
    """The line of a journal that holds these fields."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def clear_uncommitted(cache_path: Path, name: str) -> None:
    """Remove what a dead writer left of the shard that comes next in its part: only a listed shard exists."""
    for path in (cache_path / f".tmp-{name}", cache_path / f"{name}.zarr", cache_path / f"{name}.parquet"):
        if path.exists():
            files.remove(path)


class Journal:
    """A journal open for appending, locked against every other writer until it is closed."""

    def __init__(self, cache_path: Path, part: Part) -> None:
        """Raises CacheError while another process writes the same part."""
        self.path = cache_path / journal_name(part)
        try:
            self._descriptor = files.open_locked(self.path)
        except BlockingIOError as error:
            raise CacheError(
                f"{cache_path} is being written by another process (part {part[0]} of {part[1]}); "
                "wait for it or stop it"
            ) from error
        self.content = read_journal(self.path)
        self._size_bytes = self.content.size_bytes
        files.truncate(self.path, self._descriptor, self._size_bytes)

    def append_shard(self, entry: ShardEntry) -> None:
        """Commit a shard whose files are in place and synced."""
        counts = {"num_samples": entry.num_samples, "num_tokens": entry.num_tokens, "num_entries": entry.num_entries}
        self._append({"shard": entry.name, **counts, "files": entry.files})

    def append_rejected(self, sample_id: str, reason: str) -> None:
        """Note a sample that the cache will never hold, and why."""
        self._append({"rejected": sample_id, "reason": reason})

    def append_complete(self) -> None:
        """Note that the part has nothing more to write."""
        self._append({"complete": True})

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def _append(self, fields: Mapping[str, Any]) -> None:
        line = journal_line(fields)
        try:
            files.append(self.path, self._descriptor, line)
        except CacheError:
            files.truncate(self.path, self._descriptor, self._size_bytes)  # a torn line would spoil the next one
            raise
        self._size_bytes += len(line)

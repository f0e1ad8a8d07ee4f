"""The folder of a cache as its writers find it: whether they may use it, what it holds, and taking it away."""

import contextlib
import os
from pathlib import Path

from betakd_cache import files
from betakd_cache.errors import CacheError
from betakd_cache.journal import JOURNAL_NAME, WHOLE, Part, journal_name, journal_paths, read_journal
from betakd_cache.manifest import MANIFEST_NAME, Manifest, check_same, read_manifest
from betakd_cache.rows import read_rows


def stored_ids(path: Path) -> set[str]:
    """The ids of all samples that the journals of a cache list as stored or rejected."""
    stored: set[str] = set()
    for content in map(read_journal, journal_paths(path)):
        if content.shards:
            tables = [path / f"{entry.name}.parquet" for entry in content.shards]
            stored.update(read_rows(tables, ["sample_id"])["sample_id"].to_pylist())
        stored.update(content.rejected)
    return stored


def check_place(path: Path, wanted: Manifest) -> None:
    """Nothing; raises CacheError unless `path` is free or holds a cache that `wanted` may resume."""
    if (path / MANIFEST_NAME).exists():
        check_same(path, read_manifest(path), wanted)
    elif path.exists():
        if not path.is_dir():
            raise CacheError(f"{path} is a file, expected a folder for the cache; give another path")
        for entry in path.iterdir():
            if not entry.name.startswith(".tmp-") and not JOURNAL_NAME.fullmatch(entry.name):
                raise CacheError(f"{path} holds {entry.name} and is not a cache; give a new or an empty folder")


def remove_cache(path: Path, part: Part) -> None:
    """Delete the cache at `path`, if there is one and nobody writes it; anything else is left to `check_place`."""
    if part != WHOLE:
        raise CacheError(f"part {part[0]} of {part[1]} cannot overwrite {path}; remove the cache, then start all parts")
    if not (path / MANIFEST_NAME).exists():
        return
    read_manifest(path)  # what is not a cache is not overwritten either
    with contextlib.ExitStack() as locks:
        for journal in journal_paths(path):
            try:
                locks.callback(os.close, files.open_locked(journal))
            except BlockingIOError as error:
                raise CacheError(f"{path} is being written by another process; stop it before overwriting") from error
        files.remove(path)


def remove_unused(path: Path, part: Part) -> None:
    """Take away the folder of a cache to which this part, whose journal is still locked, has committed nothing.

    It stays where there is anything beside the manifest and that journal: another part, or a file of somebody's own.
    """
    journal = path / journal_name(part)
    if {entry.name for entry in path.iterdir()} == {MANIFEST_NAME, journal.name} and not journal.stat().st_size:
        for file in (journal, path / MANIFEST_NAME):
            files.remove(file)
        with files.naming(path):
            path.rmdir()

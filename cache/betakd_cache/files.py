"""The one place where this package changes a file system; every failure is a CacheError that names the path.

Durability is explicit: `sync` what was written, then the directories that name it, before anything refers to it.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from betakd_cache.errors import CacheError

SYNC_THREADS = 16  # they wait and do not compute

REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again, what was committed is kept",
    errno.EDQUOT: "raise the quota and run the same command again, what was committed is kept",
    errno.EROFS: "write to a file system that is not read-only",
    errno.EACCES: "give yourself permission to write there",
}


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an OSError of the enclosed lines into a CacheError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "mend the file system and run the same command again")
        raise CacheError(f"cannot write {path}: {error.strerror}; {remedy}") from error


def make_directory(path: Path) -> None:
    """Create a directory and its parents; an existing one is fine."""
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)


def write(path: Path, *parts: Any) -> tuple[int, str]:
    """The size in bytes and the sha256 of a new file made of `parts` (bytes or C-contiguous arrays)."""
    digest = hashlib.sha256()
    size_bytes = 0
    with naming(path), open(path, "xb") as file:
        for part in parts:
            view = memoryview(part).cast("B")
            file.write(view)
            digest.update(view)
            size_bytes += view.nbytes
    return size_bytes, digest.hexdigest()


def sync(paths: Sequence[Path]) -> None:
    """Wait until the content of these files and directories is on the device; several at once share its commits."""
    if len(paths) == 1:
        _sync_one(paths[0])
        return
    with ThreadPoolExecutor(SYNC_THREADS) as threads:
        list(threads.map(_sync_one, paths))


def _sync_one(path: Path) -> None:
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give `source` its final name; the target must not exist."""
    with naming(target):
        source.rename(target)


def create_whole(path: Path, temporary: Path, content: bytes) -> bool:
    """True if a file of this content was created in one step, False if another one was there first."""
    _write_synced(temporary, content)
    try:
        with naming(path):
            os.link(temporary, path)
    except CacheError as error:
        if isinstance(error.__cause__, FileExistsError):
            return False
        raise
    finally:
        temporary.unlink()
    sync([path.parent])
    return True


def replace_whole(path: Path, temporary: Path, content: bytes) -> None:
    """Put `content` at `path`; at every moment it is the old file or the new one."""
    _write_synced(temporary, content)
    with naming(path):
        temporary.replace(path)
    sync([path.parent])


def _write_synced(temporary: Path, content: bytes) -> None:
    """Write a file of a name that only the caller uses, so what lies there is left from a writer that died."""
    temporary.unlink(missing_ok=True)
    write(temporary, content)
    sync([temporary])


def remove(path: Path) -> None:
    """Delete a file or a whole directory."""
    with naming(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def open_locked(path: Path) -> int:
    """A descriptor for appending to `path`, locked until it is closed or its process ends.

    Raises BlockingIOError while another writer holds it: the kernel drops the lock of a process that died.
    """
    with naming(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def truncate(path: Path, descriptor: int, size_bytes: int) -> None:
    """Cut the file behind `descriptor` to its first bytes."""
    with naming(path):
        os.ftruncate(descriptor, size_bytes)


def append(path: Path, descriptor: int, content: bytes) -> None:
    """Add `content` to the end of the file behind `descriptor` and wait until it is on the device."""
    with naming(path):
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)

"""A local folder in place of a cache in an object store: shards are fetched when they are first needed.

Under the staging folder every cache has a folder of its own, named by URL and manifest, so that a cache that was
written again is not mixed up with what it was. A shard is fetched as two units, its Zarr group and its rows.
`.lock-UNIT` is held while a unit is fetched, opened or dropped, says its size, and is touched when the unit is used.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from betakd_cache import files
from betakd_cache.commits import changed, write_mirror
from betakd_cache.journal import ShardEntry
from betakd_cache.manifest import MANIFEST_NAME, parse_manifest
from betakd_cache.object_store import NUM_TRANSFERS, ObjectStore

LIMIT_BYTES = 2**36  # 64 GiB
LOCK = ".lock-"

Hold = Callable[[str, ShardEntry], AbstractContextManager[None]]
"""Makes sure that a unit (`NAME.zarr` or `NAME.parquet`) of a shard is in the folder while the context lasts."""


@contextlib.contextmanager
def hold_nothing(unit: str, entry: ShardEntry) -> Iterator[None]:
    """The `Hold` of a cache that is in a folder: everything is there."""
    yield


def default_folder() -> Path:
    """Where shards are staged unless somebody says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "betakd-pipe" / "staging"


def stage(url: str, folder: Path | str | None, limit_bytes: int) -> "StagedCache":
    """The cache at `url` with its manifest and journals in a folder, and no shard yet.

    Raises CacheError where there is none.
    """
    store = ObjectStore(url)
    content = store.find(MANIFEST_NAME)
    manifest = parse_manifest(store.url, content)
    root = default_folder() if folder is None else Path(folder)
    staged = root / hashlib.sha256(store.url.encode() + b"\n" + manifest.to_bytes()).hexdigest()[:32]
    files.make_directory(staged)
    with _locked(staged / f"{LOCK}{MANIFEST_NAME}"):
        write_mirror(store, manifest, staged)
    return StagedCache(store, staged, limit_bytes)


@dataclass(frozen=True, slots=True)
class StagedCache:
    """The folder of a cache in an object store. All caches below one staging folder share `limit_bytes` of it."""

    store: ObjectStore
    folder: Path
    limit_bytes: int

    @contextlib.contextmanager
    def hold(self, unit: str, entry: ShardEntry) -> Iterator[None]:
        """The unit is in the folder while the context lasts; what is open then stays readable ever after."""
        lock = self.folder / f"{LOCK}{unit}"
        with _locked(lock):
            if not (self.folder / unit).exists():
                self._fetch(unit, entry, lock)
                self._drop_least_recently_used()
            os.utime(lock)
            yield

    def fetch_rows(self, entries: Sequence[ShardEntry]) -> None:
        """Fetch the rows of many shards, several at a time."""

        def fetch(entry: ShardEntry) -> None:
            with self.hold(f"{entry.name}.parquet", entry):
                pass

        with ThreadPoolExecutor(NUM_TRANSFERS) as threads:
            list(threads.map(fetch, entries))

    def _fetch(self, unit: str, entry: ShardEntry, lock: Path) -> None:
        """Fetch, check and only then name a unit. Raises CacheError for an object that is missing or has changed."""
        listed = {name: value for name, value in entry.files.items() if name.partition("/")[0] == unit}
        temporary = self.folder / f".tmp-{unit}"
        if temporary.exists():
            files.remove(temporary)

        def check(name: str, content: bytes) -> None:
            size_bytes, sha256 = listed[name]
            if len(content) != size_bytes or hashlib.sha256(content).hexdigest() != sha256:
                raise changed(self.store, name)

        self.store.download(list(listed), temporary, check)
        lock.write_text(str(sum(size_bytes for size_bytes, _ in listed.values())))
        files.rename(temporary / unit, self.folder / unit)
        files.remove(temporary)

    def _drop_least_recently_used(self) -> None:
        """Remove units until the rest is within the limit; those held by somebody, such as the caller, are kept."""
        units = [_Unit.of(lock) for lock in self.folder.parent.glob(f"*/{LOCK}shard-*")]
        excess_bytes = sum(unit.size_bytes for unit in units) - self.limit_bytes
        for unit in sorted(units, key=lambda unit: unit.used_ns):
            if excess_bytes <= 0:
                return
            with contextlib.suppress(BlockingIOError), _locked(unit.lock, wait=False):
                if unit.path.exists():
                    dropped = unit.path.with_name(f".tmp-dropped-{unit.path.name}")
                    files.rename(unit.path, dropped)  # half of a unit must not pass for the whole
                    files.remove(dropped)
                unit.lock.write_text("0")
                excess_bytes -= unit.size_bytes


@dataclass(frozen=True, slots=True)
class _Unit:
    """A staged unit as its lock file describes it."""

    lock: Path
    path: Path
    size_bytes: int
    used_ns: int

    @classmethod
    def of(cls, lock: Path) -> "_Unit":
        path = lock.with_name(lock.name.removeprefix(LOCK))
        return cls(lock, path, int(lock.read_text() or 0), lock.stat().st_mtime_ns)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """The lock of `path` is held while the context lasts; raises BlockingIOError if it is taken and `wait` is False."""
    with files.naming(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)

"""What a report can still read of the caches that runs learned from."""

from pathlib import Path

from betakd_cache import CacheError, Manifest, read_manifest

GONE = "The cache is no longer at this path."


def read_cache(path: str) -> Manifest | str:
    """The manifest of a cache, or a sentence saying why there is none to read.

    A report of runs that were moved, or whose cache was deleted to save space or damaged, is still worth reading.
    """
    if not Path(path).exists():
        return GONE
    try:
        return read_manifest(path)
    except CacheError as error:
        return f"The cache cannot be read: {error}."

"""How long the teacher took, session by session: CACHE.sessions.jsonl beside the cache's folder.

Not inside it: what a cache holds depends on nothing but the teacher and the data. Nothing is noted for an object store.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from betakd_cache.object_store import is_url

SUFFIX = ".sessions.jsonl"


def sessions_path(cache: Path | str) -> Path:
    """Where the sessions of the cache in this folder are noted."""
    return Path(f"{str(cache).rstrip('/')}{SUFFIX}")


@contextmanager
def noted_session(cache: Path | str, part: tuple[int, int], *, is_first: bool) -> Iterator[None]:
    """Notes the seconds of the enclosed lines, however they end; those of one process among maybe several.

    With `is_first`, what is there is of a cache that was removed, and goes.
    """
    if is_url(cache):
        yield
        return
    if is_first:
        sessions_path(cache).unlink(missing_ok=True)
    start_s = time.perf_counter()
    try:
        yield
    finally:
        line = {"part": f"{part[0]}/{part[1]}", "seconds": round(time.perf_counter() - start_s, 3)}
        with sessions_path(cache).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

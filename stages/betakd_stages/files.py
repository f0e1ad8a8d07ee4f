"""Files and folders written so that a reader sees the old content or the new, never half of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from betakd_stages.errors import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to a file beside `path`, flush it to disk and rename it into place."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def written_whole(out: Path, *, overwrite: bool = False, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place when the enclosed lines have ended, and goes if they fail.

    Raises ConfigError where `out` holds anything, unless `overwrite` asks to replace it and one of the files `replaces`
    shows that it is of the kind that is written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise ConfigError(f"{out} is not empty: choose another --out, or replace it (--overwrite)")
        if not any((out / name).is_file() for name in replaces):
            raise ConfigError(f"{out} holds none of {', '.join(replaces)}, so it is not replaced: choose another --out")
    temporary, before = (out.with_name(f".{kind}-{out.name}") for kind in ("tmp", "old"))
    for left_over in (temporary, before):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if out.exists():
        out.rename(before)
    temporary.rename(out)
    shutil.rmtree(before, ignore_errors=True)

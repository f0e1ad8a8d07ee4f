"""Small files written so that a reader sees the old content or the new, never half of it."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to a file beside `path`, flush it to disk and rename it into place."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

"""The answers of an evaluation that is under way, so that an interrupted one goes on in the middle of a benchmark."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from betakd_stages.errors import ConfigError
from betakd_stages.evaluation.generation import Answer


class AnswersUnderWay:
    """A file of one line that says whose answers these are, and a line per answer; it grows batch by batch.

    Only whole batches are read back: cut at other places, batches would be padded otherwise, and sums of floats differ.
    Its lock, which ends with the process, keeps a second one out, such as a task that a cluster runs again elsewhere.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], batch_size: int) -> None:
        """Raises ConfigError where the file holds the answers of another evaluation, or is being written."""
        self._path = path
        whose = {**identity, "batch_size": batch_size}
        self._file = _locked(path)
        try:
            found = whole_lines(path)
            if found:
                require_same(path.parent, found[0], whose)
        except ConfigError:
            self._file.close()
            raise
        rows = found[1:]
        rows = rows[: len(rows) // batch_size * batch_size]
        self.answers = [Answer(**row) for row in rows]
        self._file.truncate(0)
        self._write(whose, *rows)

    def __enter__(self) -> "AnswersUnderWay":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def append(self, batch: Sequence[Answer]) -> None:
        """Add a batch, on disk when this returns."""
        self.answers += batch
        self._write(*map(dataclasses.asdict, batch))

    def remove(self) -> None:
        """Remove the file: its answers are written elsewhere."""
        self._path.unlink()

    def _write(self, *rows: Mapping[str, Any]) -> None:
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()
        os.fsync(self._file.fileno())


def _locked(path: Path) -> TextIO:
    """The file, open for appending, locked to this process."""
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{path.parent} is being written by another process: wait for it, or end it") from None
    return file


def require_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ConfigError where what a folder says of its answers differs from what is wanted."""
    for key, value in here.items():
        if there.get(key) != value:
            raise ConfigError(
                f"{folder} holds scores of another evaluation: {key} is {there.get(key)!r} there and {value!r} here. "
                "Choose another --out or remove the folder"
            )


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows up to the first that is not whole, which is where the writing was cut off."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows

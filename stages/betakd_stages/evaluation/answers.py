"""The answers and draws of an evaluation that is under way, so that an interrupted one goes on in the middle."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar

from betakd_stages.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


class UnderWay(Generic[Row]):
    """A file of one line that says whose rows these are, and a line per row; it grows batch by batch.

    Only whole batches are read back: cut at other places, batches would be padded otherwise, and sums of floats differ.
    Its lock, which ends with the process, keeps a second one out, such as a task that a cluster runs again elsewhere.
    """

    def __init__(self, path: Path, kind: Callable[..., Row], identity: Mapping[str, Any], batch_size: int) -> None:
        """`kind` makes a row of what stands in its line. Raises ConfigError where the file holds the rows of another
        evaluation, or is being written."""
        self._path = path
        self._file = _locked(path)
        lines = _whole_lines(path)
        try:
            if lines:
                require_same(path.parent, json.loads(lines[0]), identity)
        except ConfigError:
            self._file.close()
            raise
        num_kept = max(len(lines) - 1, 0) // batch_size * batch_size
        self.rows = [kind(**json.loads(line)) for line in lines[1 : num_kept + 1]]
        # What is kept stays where it is, so that a kill costs none of it; so does the file, whose lock this is.
        self._file.truncate(sum(map(len, lines[: num_kept + 1])))
        if not lines:
            self._write(identity)

    def __enter__(self) -> "UnderWay[Row]":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def append(self, batch: Sequence[Row]) -> None:
        """Add a batch, on disk when this returns."""
        self.rows += batch
        self._write(*(dataclasses.asdict(row) for row in batch))

    def remove(self) -> None:
        """Remove the file: its rows are written elsewhere."""
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


def _whole_lines(path: Path) -> list[bytes]:
    """The lines up to the first that is not whole, which is where the writing was cut off."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        lines.append(line)
    return lines

"""The rows of a JSON file, read one at a time: only their places in the file are kept in memory.

Both forms are told apart by their first character: `[` begins a list of objects, `{` one object per line (JSONL).
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from betakd_stages.errors import DataError

CHUNK_BYTES = 2**20
MAX_ROW_BYTES = 2**26
SPACE = re.compile(r"[ \t\r\n]*")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonRows(Sequence[Mapping[str, Any]]):
    """The objects of a JSON or JSONL file."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is neither a list of objects nor one object per line."""
        self._path = path
        try:
            self._spans = _row_spans(path)
        except OSError as error:
            raise DataError(f"data file {path} cannot be read ({error.strerror}): check the path") from None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Row `index`. Raises DataError where it is not a JSON object."""
        start, end = self._spans[index].tolist()
        with self._path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start)
        try:
            row = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"row {index} of {self._path} is not JSON ({error}): correct the file") from None
        if not isinstance(row, dict):
            raise DataError(f"row {index} of {self._path} is a {type(row).__name__}: expected an object")
        return row


def json_object(path: Path) -> dict[str, Any]:
    """The one object of a JSON file, read whole. Raises DataError for a file that holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"data file {path} cannot be read ({error.strerror}): check the folder") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"data file {path} is not JSON ({error}): download it again") from None
    if not isinstance(values, dict):
        raise DataError(f"data file {path} holds a {type(values).__name__}: expected an object, entries by name")
    return values


def _row_spans(path: Path) -> NDArray[np.int64]:
    """First byte and end of every row, int64 [N, 2]."""
    with path.open("rb") as file:
        start = len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
        file.seek(start)
        first = file.read(4096).lstrip()[:1]
        file.seek(start)
        if first == b"[":
            spans = _list_spans(file, path)
        elif first == b"{":
            spans = _line_spans(file)
        else:
            raise DataError(
                f"data file {path} begins with {first.decode('latin-1')!r}: expected a JSON list of objects, or one "
                "object per line (JSONL)"
            )
        return np.fromiter(itertools.chain.from_iterable(spans), dtype=np.int64).reshape(-1, 2)


def _line_spans(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """The places of the lines that are not empty."""
    start = file.tell()
    for line in file:
        if line.strip():
            yield start, start + len(line)
        start += len(line)


def _list_spans(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """The places of a JSON list's elements."""
    text = _Window(file, path)
    text.take("[")
    if text.peek() == "]":
        text.take("]")
    else:
        while True:
            yield text.skip_value()
            if text.peek() == "]":
                text.take("]")
                break
            text.take(",")
    if text.peek():
        text.fail(f"{text.peek()!r} follows the list")


class _Window:
    """A moving window over the file. Latin-1 gives every byte one character: places in the text are places in the file,
    and JSON's own characters stay what they are in UTF-8."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._base = file.tell()

    def peek(self) -> str:
        """The next character that is not space, or nothing at the end of the file."""
        while True:
            match = SPACE.match(self._text, self._at)
            assert match is not None  # it matches nothing, too
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def take(self, expected: str) -> None:
        """Step over this character."""
        if self.peek() != expected:
            self.fail(f"{self.peek() or 'the end'!r} stands where {expected!r} is expected")
        self._at += 1

    def skip_value(self) -> tuple[int, int]:
        """The place of the JSON value here, and step over it."""
        self.peek()
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
                break
            except (ValueError, RecursionError) as error:
                is_whole = len(self._text) - self._at > MAX_ROW_BYTES or not self._read_on()
                if is_whole:
                    self.fail(str(error).partition(": line")[0])
        span = (self._base + self._at, self._base + end)
        self._at = end
        return span

    def fail(self, what: str) -> None:
        """Raises DataError."""
        raise DataError(f"data file {self._path} is not JSON ({what}, at byte {self._base + self._at}): correct it")

    def _read_on(self) -> bool:
        chunk = self._file.read(CHUNK_BYTES).decode("latin-1")
        self._text = self._text[self._at :] + chunk
        self._base += self._at
        self._at = 0
        return bool(chunk)

"""Reading the official files: errors that name the entry, and the words of LLaVA's files of questions."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from betakd_stages.data.json_rows import JsonRows
from betakd_stages.data.tables import cell, text_of
from betakd_stages.errors import DataError

Read = TypeVar("Read")
Row = Mapping[str, Any]


@contextmanager
def named(place: str) -> Iterator[None]:
    """Errors of the enclosed lines say where: `place` leads them."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def read_rows(file: str | Path, read: Callable[[Row], Read]) -> list[Read]:
    """What `read` makes of every row of a JSON or JSONL file. Raises DataError, naming the row."""
    found = []
    for number, row in enumerate(JsonRows(Path(file)), start=1):
        with named(f"row {number} of {file}"):
            found.append(read(row))
    return found


def text_in(row: Row, column: str) -> str:
    """The text of a row in a column; a whole number's is its digits. Raises DataError where there is none."""
    return text_of(cell(row, column), f"its {column!r}")


def prompts_in(file: str, keys: Collection[Hashable], key: Callable[[Row], Hashable]) -> dict[Hashable, str]:
    """The words of LLaVA's file of questions (rows of question_id and text) by the key of a row of predictions.

    Raises DataError unless the file asks exactly the questions `keys`.
    """

    def read(row: Row) -> tuple[Hashable, str]:
        prompt = text_in(row, "text")
        found = key({"question_id": text_in(row, "question_id"), "prompt": prompt})
        if found not in keys:
            raise DataError(f"it asks {found!r}, which the benchmark's own file lacks: give two files of one split")
        return found, prompt

    prompts = dict(read_rows(file, read))
    for one in keys:
        if one not in prompts:
            raise DataError(f"{file} lacks {one!r} of the benchmark's own file: give two files of one split")
    return prompts

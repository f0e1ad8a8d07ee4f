"""LLaVA's form: rows of {"id", "image" (a path under the image folder, or absent), "conversations"}."""

from typing import Any

from betakd_stages.data.conversation import conversation_turns
from betakd_stages.data.sample import SampleSet
from betakd_stages.data.specification import DataSpecification
from betakd_stages.data.tables import PLACE_OPTIONS, Content, Row, cell, table_samples, text_of
from betakd_stages.errors import DataError

SPEAKERS = ("human", "gpt")


def load_llava(specification: DataSpecification) -> SampleSet:
    """The samples of `llava:FILE?images=DIR`. Raises DataError for another structure or an id that occurs twice."""
    return table_samples(specification, specification.typed_options({**PLACE_OPTIONS, "id": "id"}), _read)


def _read(row: Row) -> Content:
    messages = cell(row, "conversations")
    if not isinstance(messages, list):
        raise DataError(f"its 'conversations' is a {type(messages).__name__}: expected a list of messages")
    image = row.get("image")
    return Content(
        conversation_turns([_message(message) for message in messages], SPEAKERS, has_image=bool(image)),
        image,
        text_of(row.get("category") or "", "its 'category'"),
    )


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise DataError(f'a message is a {type(message).__name__}: expected {{"from", "value"}}')
    return text_of(cell(message, "from"), "a message's 'from'"), text_of(cell(message, "value"), "a message's 'value'")

"""Hugging Face's "messages" form: rows with a list of {"role", "content"} and the images beside it.

A content is text, or a list of parts {"type": "text", "text"} and {"type": "image"}.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from betakd_stages.data.conversation import PLACEHOLDER, conversation_turns
from betakd_stages.data.sample import SampleSet, Turn
from betakd_stages.data.specification import DataSpecification
from betakd_stages.data.tables import PLACE_OPTIONS, Content, Row, cell, table_samples, text_of
from betakd_stages.errors import DataError

ROLES = ("user", "assistant")
SYSTEM_RULES = ("refuse", "drop", "prepend")
OPTIONS = {**PLACE_OPTIONS, "messages": "messages", "image": ("images", "image"), "system": "refuse"}


def load_messages(specification: DataSpecification) -> SampleSet:
    """The samples of `messages:PLACE`. Options: messages and image (columns; of several images columns joined by +,
    the first that a row has), system (refuse, drop or prepend a system message to the first question).

    Raises DataError for another structure.
    """
    options = specification.typed_options(OPTIONS)
    if options["system"] not in SYSTEM_RULES:
        raise DataError(f"system is {options['system']!r}: expected one of {', '.join(SYSTEM_RULES)}")
    return table_samples(specification, options, partial(_read, options=options))


def _read(row: Row, options: Mapping[str, Any]) -> Content:
    messages = cell(row, options["messages"], "messages")
    if not isinstance(messages, list):
        raise DataError(f"its {options['messages']!r} is a {type(messages).__name__}: expected a list of messages")
    spoken = [_message(message) for message in messages]
    system = [text for role, text in spoken[:1] if role == "system"]
    if system and options["system"] == "refuse":
        raise DataError("it has a system message, which samples have no place for: say system=drop or system=prepend")
    image = next((row[column] for column in options["image"] if column in row), None)
    turns = conversation_turns(spoken[len(system) :], ROLES, has_image=bool(image))
    if system and options["system"] == "prepend":
        turns = (Turn(f"{system[0].strip()}\n\n{turns[0].question}", turns[0].answer), *turns[1:])
    return Content(turns, image)


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise DataError(f'a message is a {type(message).__name__}: expected {{"role", "content"}}')
    content = cell(message, "content")
    if isinstance(content, list):
        content = _joined(content)
    return text_of(cell(message, "role"), "a message's 'role'"), text_of(content, "a message's 'content'")


def _joined(parts: Sequence[Any]) -> str:
    """The text of the parts, an image as its placeholder."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in ("text", "image"):
            raise DataError(f"a message has a part of type {kind!r}: expected text or image")
        texts.append(PLACEHOLDER if kind == "image" else text_of(part.get("text"), "a part's 'text'"))
    return "".join(texts)

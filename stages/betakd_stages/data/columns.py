"""Tables with a column for each of question, answer and image, and folders of images."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from betakd_stages.data.arrow_rows import load_arrow_rows
from betakd_stages.data.conversation import conversation_turns
from betakd_stages.data.sample import SampleSet, Turn
from betakd_stages.data.specification import DataSpecification
from betakd_stages.data.tables import PLACE_OPTIONS, Content, Row, Table, cell, checked_samples, table_samples, text_of

COLUMNS = {"question": "question", "answer": "answer", "image": "image", "category": ""}
FOLDER_OPTIONS = {"split": "", "unusable": "stop", "ask": "Describe the image.", "answer": "text"}


def load_table(specification: DataSpecification) -> SampleSet:
    """The samples of `table:PLACE`, one turn each. Options name the columns: question, answer, image, category, id.

    Raises DataError for a row without a question or an answer.
    """
    options = specification.typed_options({**PLACE_OPTIONS, **COLUMNS})
    return table_samples(specification, options, partial(_read_columns, options=options))


def _read_columns(row: Row, options: Mapping[str, Any]) -> Content:
    image = row.get(options["image"])
    messages = [
        (side, text_of(cell(row, options[side], side), f"its {options[side]!r}")) for side in ("question", "answer")
    ]
    turns = conversation_turns(messages, ("question", "answer"), has_image=bool(image))
    category = options["category"]
    return Content(turns, image, text_of(cell(row, category, "category"), f"its {category!r}") if category else "")


def load_image_folder(specification: DataSpecification) -> SampleSet:
    """The samples of `imagefolder:DIR`: images in the folder, answers in its metadata.csv or .jsonl or, with
    answer=label, in the names of the folders inside it. Options: split, ask (the question), answer (the column).

    Raises DataError for a folder without images or answers.
    """
    options = specification.typed_options(FOLDER_OPTIONS)
    folder = specification.argument
    rows = load_arrow_rows(folder, options["split"], "imagefolder", data_dir=folder)
    read = partial(_read_captioned, ask=options["ask"], answer=options["answer"])
    return checked_samples(specification, options, Table(folder, rows, folder, "", read))


def _read_captioned(row: Row, ask: str, answer: str) -> Content:
    return Content((Turn(ask, text_of(cell(row, answer, "answer"), f"its {answer!r}").strip()),), row["image"])

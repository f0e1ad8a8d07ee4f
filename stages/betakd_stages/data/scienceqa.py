"""ScienceQA: the original files (problems.json, pid_splits.json, images/), or the table on the Hugging Face hub.

The question ends with its choices and LLaVA's instruction; the answer is the letter of the right choice.
Source: Lu et al. 2022, "Learn to explain"; prompt of LLaVA (Liu et al. 2023).
"""

import string
from pathlib import Path
from typing import Any

from betakd_stages.data.arrow_rows import chosen_split
from betakd_stages.data.json_rows import json_object
from betakd_stages.data.sample import SampleSet, Turn
from betakd_stages.data.specification import DataSpecification
from betakd_stages.data.tables import PLACE_OPTIONS, Content, Row, Table, cell, checked_samples, table_samples, text_of
from betakd_stages.errors import DataError

INSTRUCTION = "Answer with the option's letter from the given choices directly."
PROBLEMS, SPLITS = "problems.json", "pid_splits.json"


def load_scienceqa(specification: DataSpecification) -> SampleSet:
    """The samples of `scienceqa:DIR?split=train`, DIR as the authors publish it, or of a place with the hub's columns.

    The category is the subject. Raises DataError for an unknown split, a missing file or a problem without an answer.
    """
    options = specification.typed_options(PLACE_OPTIONS)
    folder = Path(specification.argument)
    if not (folder / PROBLEMS).is_file():
        return table_samples(specification, options, _read)
    rows = _original_rows(folder, options["split"])
    images = options["images"] or str(folder / "images")
    return checked_samples(specification, options, Table(specification.argument, rows, images, "pid", _read))


def _original_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    problems, splits = (json_object(folder / name) for name in (PROBLEMS, SPLITS))
    split = chosen_split(str(folder), list(splits), split)
    rows = []
    for pid in splits[split]:
        row = problems.get(str(pid))
        if not isinstance(row, dict):
            raise DataError(f"{folder / PROBLEMS} lacks problem {pid!r} of split {split}: download both files again")
        image = f"{row.get('split', split)}/{pid}/{row['image']}" if row.get("image") else None
        rows.append({**row, "pid": str(pid), "image": image})
    return rows


def _read(row: Row) -> Content:
    choices, answer = cell(row, "choices"), cell(row, "answer")
    if not isinstance(choices, list) or not 1 < len(choices) <= len(string.ascii_uppercase):
        raise DataError(f"its choices are {choices!r}: expected a list of 2 to {len(string.ascii_uppercase)}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(f"its answer is {answer!r}: expected the number of a choice, 0 to {len(choices) - 1}")
    letters = string.ascii_uppercase[: len(choices)]
    options = [f"{letter}. {text_of(choice, 'a choice')}" for letter, choice in zip(letters, choices, strict=True)]
    hint = text_of(row.get("hint") or "", "its 'hint'").strip()
    lines = [f"Context: {hint}"] if hint else []
    lines += [text_of(cell(row, "question"), "its 'question'"), *options, INSTRUCTION]
    category = text_of(row.get("subject") or "", "its 'subject'")
    return Content((Turn("\n".join(lines), letters[answer]),), row.get("image"), category)

"""MMBench by circular evaluation; letters are read out of answers by the exact matching of VLMEvalKit's can_infer.

On disk: mmbench_dev_20230712.tsv, images inside. Rotations of a question's options are rows of their own, whose indices
are 1,000,000 apart.
"""

import base64
import binascii
import hashlib
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from betakd_stages.data.images import MAX_BYTES, decode_image
from betakd_stages.data.sample import LoadedImage, SampleSet
from betakd_stages.data.specification import DataSpecification
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks.base import (
    LETTER_SUFFIX,
    Benchmark,
    Grades,
    Prediction,
    asked_sample,
    percent_tally,
    texts_of,
)
from betakd_stages.evaluation.benchmarks.reading import Row, named, text_in

LETTERS = "ABCD"
ROTATION_STEP = 1_000_000
MAX_REFERENCE_LENGTH = 64
NO_ANSWER = ""
REFUSAL = "Z"
PUNCTUATION = ".()[],:;!*#{}"
NUM_LAST_WORDS = 5
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


@dataclass(frozen=True, slots=True)
class Base64Image:
    """An image written into a table."""

    name: str
    text: str

    def load(self) -> LoadedImage:
        """The image as RGB. Raises DataError where it cannot be decoded."""
        content = self._content()
        return LoadedImage(decode_image(content, self.name), hashlib.sha256(content).hexdigest())

    def sha256(self) -> str:
        """The sha256 of the image's bytes."""
        return hashlib.sha256(self._content()).hexdigest()

    def _content(self) -> bytes:
        if len(self.text) > MAX_BYTES:
            raise DataError(f"image {self.name} has {len(self.text):,} characters: at most {MAX_BYTES:,}, shrink it")
        try:
            return base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"image {self.name} is not base64 ({error}): download the table again") from None


@dataclass(frozen=True, slots=True)
class Question:
    """One row: a question with its options in one of their rotations."""

    index: int
    options: Mapping[str, str]
    label: str


def load(specification: DataSpecification) -> Benchmark:
    """The benchmark `mmbench=FILE.tsv`. Raises DataError for a table without answers or rotations."""
    specification.typed_options({})
    path = Path(specification.argument)
    table = _table(path)
    images = {row["index"]: row["image"] for row in table if "image" in row}
    samples, rows, questions = [], [], []
    for row in table:
        with named(f"row {row.get('index')} of {path}"):
            question = _question(row)
            prompt = _prompt(row, question)
            image = Base64Image(f"{row['index']} of {path}", _image_text(row, images))
        category = row.get("category", "")
        samples.append(asked_sample(row["index"], image, f"{prompt}\n{LETTER_SUFFIX}", question.label, category))
        rows.append(
            {
                "question_id": question.index,
                "round_id": 0,
                "prompt": prompt,
                "options": list(question.options.values()),
                "option_char": list(question.options),
            }
        )
        questions.append(question)
    _require_rotations(path, questions)
    return Benchmark(
        "mmbench",
        SampleSet(specification.canonical(), samples),
        rows,
        partial(grade, questions),
        max_new_tokens=1024,
    )


def _table(path: Path) -> list[Row]:
    """The rows, without the cells that are empty or that pandas, which the official scripts read with, takes for it."""
    import pandas

    try:
        frame = pandas.read_table(path, dtype=str)
    except OSError as error:
        raise DataError(f"data file {path} cannot be read ({error.strerror}): check the path") from None
    except ValueError as error:  # pandas' ParserError and EmptyDataError, and text that is not UTF-8
        raise DataError(f"data file {path} is no table with tabs between ({error}): download it again") from None
    absent = [name for name in ("index", "question", "A", "B", "image", "answer") if name not in frame.columns]
    if absent:
        raise DataError(f"{path} has no column {absent[0]!r}: give the development set, mmbench_dev_20230712.tsv")
    return [{name: value for name, value in row.items() if isinstance(value, str)} for row in frame.to_dict("records")]


def _question(row: Row) -> Question:
    options: dict[str, str] = {}
    for letter in LETTERS:
        if row.get(letter, "none").lower() in ("nan", "none"):
            break
        options[letter] = row[letter]
    index, label = text_in(row, "index"), text_in(row, "answer")
    if not index.isdecimal() or label not in options:
        raise DataError(f"its index is {index!r} and its answer {label!r}: expected a number and one of its options")
    return Question(int(index), options, label)


def _prompt(row: Row, question: Question) -> str:
    hint = row.get("hint", "none")
    lines = [] if hint.lower() in ("nan", "none") else [hint]
    return "\n".join([*lines, text_in(row, "question"), *(f"{key}. {text}" for key, text in question.options.items())])


def _image_text(row: Row, images: Mapping[str, str]) -> str:
    """The image's base64; a short text is the index of another row with the same image."""
    text = text_in(row, "image")
    if len(text) > MAX_REFERENCE_LENGTH:
        return text
    if len(images.get(text, "")) <= MAX_REFERENCE_LENGTH:
        raise DataError(f"its image is {text!r}: expected base64, or the index of a row that has it")
    return images[text]


def _require_rotations(path: Path, questions: Sequence[Question]) -> None:
    if not any(question.index >= ROTATION_STEP for question in questions):
        raise DataError(
            f"{path} has no rotations, rows with an index above {ROTATION_STEP:,}: circular evaluation needs them, "
            "give mmbench_dev_20230712.tsv as it is published"
        )


def parse(text: str, options: Mapping[str, str]) -> str:
    """The letter that an answer gives, by a letter that stands alone near its end, else by the text of one option."""
    return _letter(text, options) or _by_text(text, options)


def _letter(text: str, options: Mapping[str, str]) -> str:
    if "Failed to obtain answer via API" in text:
        return NO_ANSWER
    if any(refusal in text for refusal in REFUSALS):
        return REFUSAL
    words = text.translate(str.maketrans(PUNCTUATION, " " * len(PUNCTUATION))).split()
    named_letters = [letter for letter in options if letter in words]
    if len(named_letters) == 1 and words.index(named_letters[0]) > len(words) - NUM_LAST_WORDS:
        return named_letters[0]
    return REFUSAL if not named_letters and REFUSAL in words else NO_ANSWER


def _by_text(text: str, options: Mapping[str, str]) -> str:
    if len(text) > 2 * sum(map(len, options.values())):
        return NO_ANSWER
    found = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return found[0] if len(found) == 1 else NO_ANSWER


def grade(questions: Sequence[Question], predictions: Sequence[Prediction | None]) -> Grades:
    """Questions right in every rotation; beside it the unrotated rows alone, and all rows."""
    parsed = [parse(text, one.options) for text, one in zip(texts_of(predictions), questions, strict=True)]
    correct = [letter == question.label for letter, question in zip(parsed, questions, strict=True)]
    rotations: dict[int, list[bool]] = defaultdict(list)
    for question, is_right in zip(questions, correct, strict=True):
        rotations[question.index % ROTATION_STEP].append(is_right)
    unrotated = [question.index < ROTATION_STEP for question in questions]
    tallies = {
        "circular_accuracy": percent_tally([all(group) for group in rotations.values()]),
        "single_pass_accuracy": percent_tally(correct, unrotated),
    }
    official: dict[str, Any] = {name: tally.value() for name, tally in tallies.items()}
    official["accuracy_of_rows"] = percent_tally(correct).value()
    official["num_without_letter"] = sum(letter not in string.ascii_uppercase[:4] for letter in parsed)
    return Grades(correct, parsed, official, tallies)

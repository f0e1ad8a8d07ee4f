"""Sample cards: questions on which the methods disagree, with the image and everybody's answer."""

import base64
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from betakd_pipe.report.records import (
    TEACHER,
    ReportError,
    ReportScenario,
    evaluation_folder,
    read_predictions,
    read_scores,
    rows_by_method,
    seeds_of,
    teacher_folder,
)

if TYPE_CHECKING:
    from PIL import Image

NUM_CARDS = 12
IMAGE_SIZE_PIXELS = 160
"""Small images are enlarged by a whole factor up to this size, large ones reduced to it."""

Predictions = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class AnswerGroup:
    """An answer, and who gave it."""

    answer: str
    correct: bool
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """One question; the image as a data URI, none where the sample has no image. Right answers first."""

    sample_id: str
    category: str
    question: str
    label: str
    image: str | None
    answers: tuple[AnswerGroup, ...]


def sample_cards(scenario: ReportScenario) -> list[Card]:
    """Up to twelve cards of the first seed, chosen by `chosen_indices`; the same for the same answers.

    Raises ReportError where the methods were asked different questions, DataError for samples that cannot be loaded.
    """
    from betakd_stages.data import load_samples  # imports Pillow

    folders = _evaluations(scenario)
    predictions = _predictions(folders)
    students = [answers for method, answers in predictions.items() if method != TEACHER]
    evaluation = next(iter(folders.values()))
    samples = load_samples(read_scores(evaluation)["benchmark"])
    cards = []
    for index in chosen_indices(students):
        sample, asked = samples[index], students[0][index]
        if sample.sample_id != asked["sample_id"]:
            raise ReportError(
                f"{evaluation}: question {index} is {asked['sample_id']!r}, but the benchmark has "
                f"{sample.sample_id!r} there: evaluate again with this version"
            )
        answers = {method: answered[index] for method, answered in predictions.items()}
        image = None if sample.image is None else data_uri(sample.image.load().pixels)
        cards.append(
            Card(asked["sample_id"], asked["category"], asked["question"], asked["label"], image, _grouped(answers))
        )
    return cards


def chosen_indices(students: Sequence[Predictions], num_cards: int = NUM_CARDS) -> list[int]:
    """Indices of the most telling questions, the question types taking turns.

    Within a type come first the questions that split the methods most evenly into right and wrong, then those with
    most different answers; the rest of the order is by the hash of the id, so that neighbours are not drawn together.
    """

    def rank(index: int) -> tuple[int, int, str]:
        num_right = sum(answers[index]["correct"] for answers in students)
        distinct = {answers[index]["answer"] for answers in students}
        identity = hashlib.sha256(students[0][index]["sample_id"].encode()).hexdigest()
        return -min(num_right, len(students) - num_right), -len(distinct), identity

    by_category: dict[str, list[int]] = {}
    for index, asked in enumerate(students[0]):
        by_category.setdefault(asked["category"], []).append(index)
    ranked = [sorted(indices, key=rank) for indices in by_category.values()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    return list(itertools.islice((index for index in turns if index is not None), num_cards))


def _evaluations(scenario: ReportScenario) -> dict[str, Path]:
    """The evaluations of the first seed by method, the teacher's first where it was made."""
    seed = seeds_of(scenario)[0]
    methods = rows_by_method(scenario)
    folders = {method: evaluation_folder(row) for method, rows in methods.items() for row in rows if row.seed == seed}
    teacher = teacher_folder(scenario, seed)
    return {TEACHER: teacher, **folders} if teacher.is_dir() else folders


def _predictions(folders: Mapping[str, Path]) -> dict[str, Predictions]:
    """The predictions of every evaluation. Raises ReportError if they answer different questions."""
    predictions: dict[str, Predictions] = {method: read_predictions(folder) for method, folder in folders.items()}
    asked = {method: [answer["sample_id"] for answer in answers] for method, answers in predictions.items()}
    reference = next(iter(asked))
    for method, questions in asked.items():
        if questions != asked[reference]:
            raise ReportError(
                f"{folders[method]}: answers other questions than {folders[reference]}, expected the same benchmark: "
                "evaluate both on one"
            )
    return predictions


def _grouped(answers: Mapping[str, Mapping[str, Any]]) -> tuple[AnswerGroup, ...]:
    methods: dict[tuple[str, bool], list[str]] = {}
    for method, answer in answers.items():
        methods.setdefault((answer["answer"], answer["correct"]), []).append(method)
    groups = [AnswerGroup(answer, correct, tuple(names)) for (answer, correct), names in methods.items()]
    return tuple(sorted(groups, key=lambda group: not group.correct))


def data_uri(pixels: "Image.Image") -> str:
    """The image, enlarged or reduced, as PNG in a text that a page can hold."""
    from PIL import Image

    factor = IMAGE_SIZE_PIXELS // max(pixels.size)
    if factor >= 1:
        pixels = pixels.resize((pixels.width * factor, pixels.height * factor), Image.Resampling.NEAREST)
    else:
        pixels = pixels.copy()
        pixels.thumbnail((IMAGE_SIZE_PIXELS, IMAGE_SIZE_PIXELS))
    content = io.BytesIO()
    pixels.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")

"""Sample cards: questions on which the methods disagree, with the image and everybody's answer."""

import base64
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from betakd_pipe.ablation.rows import EVALUATION
from betakd_pipe.report.records import (
    TEACHER,
    Records,
    ReportError,
    ReportScenario,
    Runs,
    read_predictions,
    read_scores,
    seeds_of,
    teacher_evaluations,
)
from betakd_stages.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    from betakd_stages.data import SampleSet

NUM_CARDS = 12
IMAGE_SIZE_PIXELS = 160
"""Small images are enlarged by a whole factor up to this size, large ones reduced to it."""


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


@dataclass(frozen=True, slots=True)
class Cards:
    """The cards of one seed, and why they have no images where they should."""

    seed: int
    cards: tuple[Card, ...]
    problem: str


def sample_cards(scenario: ReportScenario, runs: Runs) -> "Cards":
    """Up to twelve cards of the first seed, chosen by `chosen_indices`; the same for the same answers.

    Raises ReportError where the methods were asked different questions, or other ones than the benchmark has.
    """
    seed = seeds_of(scenario)[0]
    of_seed = {method: run for method, of in runs.items() for run in of if run.row.seed == seed}
    students = {method: run.predictions for method, run in of_seed.items()}
    folders = {method: run.row.run / EVALUATION for method, run in of_seed.items()}
    teacher = teacher_evaluations(scenario).get(seed)
    answered: dict[str, Records] = dict(students)
    if teacher is not None:
        folders, answered = {TEACHER: teacher, **folders}, {TEACHER: read_predictions(teacher), **answered}
    _require_same_questions(folders, answered)
    evaluation = next(iter(folders.values()))
    samples, problem = _samples_of(evaluation)
    cards = [_card(index, answered, samples, evaluation) for index in chosen_indices(list(students.values()))]
    return Cards(seed, tuple(cards), problem)


def _samples_of(evaluation: Path) -> "tuple[SampleSet | None, str]":
    """The questions of an evaluation, to show their images; where they are gone, why there are none."""
    from betakd_stages.evaluation.benchmarks import load_benchmark  # imports Pillow

    try:
        return load_benchmark(read_scores(evaluation)["benchmark"]).samples, ""
    except DataError as error:
        return None, f"Images are not shown: {error}"


def _card(index: int, answered: Mapping[str, Records], samples: "SampleSet | None", evaluation: Path) -> Card:
    asked = next(iter(answered.values()))[index]
    image = None
    if samples is not None:
        sample = samples[index]
        if sample.sample_id != asked["sample_id"]:
            raise ReportError(
                f"{evaluation}: question {index} is {asked['sample_id']!r}, but the benchmark has "
                f"{sample.sample_id!r} there: evaluate again with this version"
            )
        image = None if sample.image is None else data_uri(sample.image.load().pixels)
    answers = _grouped({method: of_method[index] for method, of_method in answered.items()})
    return Card(asked["sample_id"], asked["category"], asked["question"], asked["label"], image, answers)


def chosen_indices(students: Sequence[Records], num_cards: int = NUM_CARDS) -> list[int]:
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


def _require_same_questions(folders: Mapping[str, Path], answered: Mapping[str, Records]) -> None:
    """Raise ReportError if the evaluations answer different questions."""
    asked = {method: [answer["sample_id"] for answer in answers] for method, answers in answered.items()}
    reference = next(iter(asked))
    for method, questions in asked.items():
        if questions != asked[reference]:
            raise ReportError(
                f"{folders[method]}: answers other questions than {folders[reference]}, expected the same benchmark: "
                "evaluate both on one"
            )


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

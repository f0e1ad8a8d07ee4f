"""POPE by the rule of LLaVA's eval_pope.py, which is that of the authors.

On disk: coco_pope_adversarial.json, coco_pope_popular.json, coco_pope_random.json, and COCO's val2014 images. LLaVA's
llava_pope_test.jsonl may give the questions; its lines of a set belong to that set's lines one by one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from betakd_stages.data.images import ImageFile
from betakd_stages.data.sample import SampleSet
from betakd_stages.data.specification import DataSpecification
from betakd_stages.data.tables import cell
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks.base import (
    PHRASE_SUFFIX,
    Benchmark,
    Grades,
    Prediction,
    asked_sample,
    texts_of,
)
from betakd_stages.evaluation.benchmarks.reading import Row, read_rows, text_in
from betakd_stages.evaluation.bootstrap import Floats, Tally

SETS = ("adversarial", "popular", "random")
OPTIONS = {"images": "", "questions": ""}
NUM_RANDOM_LATER = 3000
OF_THE_FIELD = "published numbers use the version of the random file with 2,910 lines"
OUTCOMES = ("TP", "FP", "TN", "FN")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """One line; `number` is how predictions name it."""

    set_name: str
    number: str | int
    image: str
    prompt: str
    label: str


def load(specification: DataSpecification) -> Benchmark:
    """The benchmark `pope=FOLDER[?images=DIR&questions=FILE]`. Raises DataError for missing or misaligned files."""
    options = specification.typed_options(OPTIONS)
    folder = Path(specification.argument)
    by_set = {name: _questions(name, folder / f"coco_pope_{name}.json") for name in SETS}
    if len(by_set["random"]) == NUM_RANDOM_LATER:
        logger.warning("%s: its random set has 3,000 lines; %s", folder, OF_THE_FIELD)
    if options["questions"]:
        by_set = _asked_as_in(options["questions"], by_set)
    questions = [question for name in SETS for question in by_set[name]]
    images = options["images"] or str(folder / "val2014")
    samples = [
        asked_sample(f"{name}/{place}", ImageFile(images, one.image), one.prompt, one.label, name)
        for name in SETS
        for place, one in enumerate(by_set[name], start=1)
    ]
    return Benchmark(
        "pope",
        SampleSet(specification.canonical(), samples),
        [{"question_id": one.number, "prompt": one.prompt, "category": one.set_name} for one in questions],
        partial(grade, [(one.set_name, one.label) for one in questions]),
        asked={"num_lines": {name: len(lines) for name, lines in by_set.items()}},
    )


def _questions(name: str, path: Path) -> list[Question]:
    def read(row: Row) -> Question:
        label, prompt = text_in(row, "label"), f"{text_in(row, 'text')}\n{PHRASE_SUFFIX}"
        if label not in ("yes", "no"):
            raise DataError(f"its label is {label!r}: expected yes or no")
        return Question(name, f"{name}/{text_in(row, 'question_id')}", text_in(row, "image"), prompt, label)

    return read_rows(path, read)


def _asked_as_in(file: str, by_set: dict[str, list[Question]]) -> dict[str, list[Question]]:
    """The questions in the words and under the ids of LLaVA's file, whose lines pair with the labels by their order."""
    asked: dict[str, list[tuple[str | int, str, str]]] = {name: [] for name in SETS}

    def read(row: Row) -> None:
        name = text_in(row, "category")
        if name not in asked:
            raise DataError(f"its category is {name!r}: expected one of {', '.join(SETS)}")
        asked[name].append((cell(row, "question_id"), text_in(row, "image"), text_in(row, "text")))

    read_rows(file, read)
    return {name: _paired(file, asked[name], by_set[name]) for name in SETS}


def _paired(file: str, asked: Sequence[tuple[str | int, str, str]], labelled: Sequence[Question]) -> list[Question]:
    name = labelled[0].set_name if labelled else "an empty set"
    if len(asked) != len(labelled):
        raise DataError(
            f"coco_pope_{name}.json has {len(labelled):,} lines and {file} asks {len(asked):,} questions of {name}: "
            f"they pair one by one, and most labels would be those of other questions; {OF_THE_FIELD}"
        )
    paired = []
    for place, ((number, image, prompt), line) in enumerate(zip(asked, labelled, strict=True), start=1):
        if image != line.image or prompt.split("\n")[0] != line.prompt.split("\n")[0]:
            raise DataError(
                f"question {place} of {name} is {prompt!r} about {image} in {file} and {line.prompt!r} about "
                f"{line.image} in coco_pope_{name}.json: give files that belong together; {OF_THE_FIELD}"
            )
        paired.append(Question(name, number, image, prompt, line.label))
    return paired


def parse(text: str) -> str:
    """What an answer says: no where its first sentence has a word No, no or not, else yes, whatever it says."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def grade(references: Sequence[tuple[str, str]], predictions: Sequence[Prediction | None]) -> Grades:
    """Each set's figures and the mean of the F1 scores; `references` are set and label of every question."""
    texts = texts_of(predictions)
    parsed = [parse(text) for text in texts]
    sets = list(dict.fromkeys(name for name, _ in references))
    additions = np.zeros((len(references), len(sets) * len(OUTCOMES)))
    for row, ((name, label), answer) in enumerate(zip(references, parsed, strict=True)):
        outcome = ("T" if answer == label else "F") + ("P" if answer == "yes" else "N")
        additions[row, sets.index(name) * len(OUTCOMES) + OUTCOMES.index(outcome)] = 1
    strata = np.array([sets.index(name) for name, _ in references], dtype=np.int64)
    tally = Tally(additions, strata, mean_f1)
    counts = additions.sum(axis=0).reshape(len(sets), len(OUTCOMES))
    official: dict[str, Any] = {"mean_f1": tally.value()}
    official |= {name: _figures(counts[index]) for index, name in enumerate(sets)}
    official["num_other"] = sum(text.strip(" .,").lower() not in ("yes", "no") for text in texts)
    correct = [answer == label for (_, label), answer in zip(references, parsed, strict=True)]
    return Grades(correct, parsed, official, {"mean_f1": tally})


def mean_f1(sums: Floats) -> Floats:
    """The mean F1 of the sets in percent [R], from TP, FP, TN, FN of each, [R, 4 sets]; 0 where nothing is found."""
    counts = sums.reshape(len(sums), -1, len(OUTCOMES))
    _, _, f1 = _precision_recall_f1(counts[..., 0], counts[..., 1], counts[..., 3])
    mean: Floats = f1.mean(axis=1) * 100
    return mean


def _figures(counts: Floats) -> dict[str, Any]:
    """The figures of one set, as the official script prints them (0 to 1)."""
    true_positive, false_positive, true_negative, false_negative = counts
    precision, recall, f1 = _precision_recall_f1(true_positive, false_positive, false_negative)
    return {
        **{name: int(count) for name, count in zip(OUTCOMES, counts, strict=True)},
        "accuracy": float((true_positive + true_negative) / counts.sum()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "yes_ratio": float((true_positive + false_positive) / counts.sum()),
    }


def _precision_recall_f1(true_positive: Floats, false_positive: Floats, false_negative: Floats) -> tuple[Floats, ...]:
    def ratio(part: Floats, whole: Floats) -> Floats:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    precision = ratio(true_positive, true_positive + false_positive)
    recall = ratio(true_positive, true_positive + false_negative)
    return precision, recall, ratio(2 * precision * recall, precision + recall)

"""MME by the rule of its eval_tool/calculation.py, asked as LLaVA asks it.

On disk, for every task, lines of `image<TAB>question<TAB>answer` in TASK.txt or in the text files of a folder TASK, or
lines of `question<TAB>answer` in a text file per image, beside it or in TASK/questions_answers_YN.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from betakd_stages.data.images import ImageFile
from betakd_stages.data.sample import SampleSet
from betakd_stages.data.specification import DataSpecification
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks.base import (
    PHRASE_SUFFIX,
    Benchmark,
    Grades,
    Prediction,
    asked_sample,
    texts_of,
)
from betakd_stages.evaluation.benchmarks.reading import Row
from betakd_stages.evaluation.bootstrap import Floats, Tally

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
OWN_SUFFIX = "Please answer yes or no."
OPTIONS = {"images": ""}
SUFFIXES_OF_IMAGES = (".jpg", ".png", ".jpeg")
NUM_QUESTIONS = 2
COLUMNS = ("right", "both_right", "questions", "images")


@dataclass(frozen=True, slots=True)
class Question:
    """One line: its image is named as inside the task's folder."""

    task: str
    image: str
    text: str
    label: str


def load(specification: DataSpecification) -> Benchmark:
    """The benchmark `mme=FOLDER[?images=DIR]`, DIR with a folder per task.

    Raises DataError where tasks of perception are missing, or lines are of another form.
    """
    options = specification.typed_options(OPTIONS)
    folder = Path(specification.argument)
    by_task = {task: list(_questions(folder, task)) for task in (*PERCEPTION, *COGNITION)}
    absent = [task for task in PERCEPTION if not by_task[task]]
    absent += [task for task in COGNITION if not by_task[task] and any(by_task[other] for other in COGNITION)]
    if absent:
        raise DataError(f"{folder} has no lines of {absent[0]}: expected {absent[0]}.txt or a folder {absent[0]}")
    questions = [question for task in by_task.values() for question in task]
    _require_pairs(questions)
    samples, rows = [], []
    for number, one in enumerate(questions):
        prompt = f"{bare_question(one.text)}\n{PHRASE_SUFFIX}"
        image = ImageFile(options["images"] or str(folder), f"{one.task}/{one.image}")
        sample_id = f"{one.task}/{one.image}:{number % NUM_QUESTIONS + 1}"
        samples.append(asked_sample(sample_id, image, prompt, one.label, one.task))
        rows.append({"question_id": f"{one.task}/{Path(one.image).name}", "prompt": prompt, "category": one.task})
    references = [(one.task, one.image, one.label.lower()) for one in questions]
    return Benchmark(
        "mme",
        SampleSet(specification.canonical(), samples),
        rows,
        partial(grade, references),
        key=key_of_row,
        reads_prompts=True,
    )


def _questions(folder: Path, task: str) -> Iterator[Question]:
    """The lines of a task; none where it has no file."""
    own, inside = folder / task, folder / task / "questions_answers_YN"
    texts = inside if inside.is_dir() else own
    files = [folder / f"{task}.txt"] if (folder / f"{task}.txt").is_file() else sorted(texts.glob("*.txt"))
    images = "images/" if (own / "images").is_dir() else ""
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            cells = [cell.strip() for cell in line.split("\t")]
            if len(cells) not in (2, 3) or cells[-1].lower() not in ("yes", "no"):
                raise DataError(
                    f"line {number} of {file} is {line!r}: expected question and Yes or No, or image, question and "
                    "Yes or No, with tabs between"
                )
            name = cells[0] if len(cells) == 3 else _image_of(own / images, file.stem)
            yield Question(task, f"{images}{name}", cells[-2], cells[-1])


def _image_of(folder: Path, stem: str) -> str:
    """The image of a text file; where none is there, what it would be called."""
    names = [stem + suffix for suffix in SUFFIXES_OF_IMAGES]
    return next((name for name in names if (folder / name).is_file()), names[0])


def _require_pairs(questions: Sequence[Question]) -> None:
    groups = [(image, len(list(lines))) for image, lines in groupby(questions, lambda one: (one.task, one.image))]
    counts = Counter(image for image, _ in groups)
    for (task, image), num_lines in groups:
        if num_lines != NUM_QUESTIONS or counts[task, image] > 1:
            raise DataError(
                f"{image} of {task} has {num_lines} lines in a row, {counts[task, image]} times: MME has "
                f"{NUM_QUESTIONS} of every image, once: mend the file"
            )


def bare_question(prompt: str) -> str:
    """The question without what is said about the form of its answer."""
    return prompt.replace(PHRASE_SUFFIX, "").replace(OWN_SUFFIX, "").strip()


def key_of_row(row: Row) -> Hashable:
    """Task, image without its suffix, and question, as LLaVA's convert_answer_to_mme.py finds the line of an answer."""
    name = str(row["question_id"])
    return name.split("/")[0], name.split("/")[-1].split(".")[0], bare_question(str(row["prompt"]))


def parse(text: str) -> str:
    """yes or no where the first four characters have it, in any case; yes before no; other where neither."""
    beginning = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


def grade(references: Sequence[tuple[str, str, str]], predictions: Sequence[Prediction | None]) -> Grades:
    """Perception and cognition; `references` are task, image and label of every question."""
    parsed = [parse(text) for text in texts_of(predictions)]
    correct = [answer == label for (_, _, label), answer in zip(references, parsed, strict=True)]
    right: dict[tuple[str, str], int] = {}
    for (task, image, _), is_right in zip(references, correct, strict=True):
        right[task, image] = right.get((task, image), 0) + is_right
    tallies = {}
    official: dict[str, Any] = {"tasks": {}, "num_other": parsed.count("other")}
    for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        found = [(tasks.index(task), count) for (task, _), count in right.items() if task in tasks]
        if found:
            tallies[name] = _tally(found, len(tasks))
            official[name] = tallies[name].value()
            by_task = task_scores(tallies[name].additions.sum(axis=0, keepdims=True))[0]
            official["tasks"] |= dict(zip(tasks, by_task.tolist(), strict=True))
    return Grades(correct, parsed, official, tallies)


def _tally(right: Sequence[tuple[int, int]], num_tasks: int) -> Tally:
    """The units are images: number of the task, and how many of the two questions are right."""
    additions = np.zeros((len(right), num_tasks * len(COLUMNS)))
    for row, (task, count) in enumerate(right):
        start = task * len(COLUMNS)
        additions[row, start : start + len(COLUMNS)] = (count, count == NUM_QUESTIONS, NUM_QUESTIONS, 1)
    strata = np.array([task for task, _ in right], dtype=np.int64)
    return Tally(additions, strata, lambda sums: task_scores(sums).sum(axis=1))


def task_scores(sums: Floats) -> Floats:
    """Accuracy of the questions plus that of the images, each in percent, [R, tasks]."""
    counts = sums.reshape(len(sums), -1, len(COLUMNS))
    scores: Floats = counts[..., 0] / counts[..., 2] * 100 + counts[..., 1] / counts[..., 3] * 100
    return scores

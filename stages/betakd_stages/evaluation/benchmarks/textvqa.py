"""TextVQA by the rule of LLaVA's eval_textvqa.py and m4c_evaluator.py.

On disk: TextVQA_0.5.1_val.json, the images in train_images/. LLaVA's llava_textvqa_val_v051_ocr.jsonl may give the
questions, which then name the texts that an OCR system read; without that file no OCR tokens are shown.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from betakd_stages.data.images import ImageFile
from betakd_stages.data.json_rows import json_object
from betakd_stages.data.sample import SampleSet
from betakd_stages.data.specification import DataSpecification
from betakd_stages.data.tables import cell, text_of
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks.base import (
    PHRASE_SUFFIX,
    Benchmark,
    Grades,
    Prediction,
    asked_sample,
    percent_tally,
    texts_of,
)
from betakd_stages.evaluation.benchmarks.reading import Row, named, prompts_in, text_in
from betakd_stages.evaluation.benchmarks.vqa_answers import normalised

ANNOTATIONS = "TextVQA_0.5.1_val.json"
OPTIONS = {"images": "", "questions": ""}
OCR_MARK = "Reference OCR token: "
NUM_ANSWERS = 10

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Annotation:
    """A question about an image, and what ten people answered."""

    question_id: str
    image_id: str
    question: str
    answers: tuple[str, ...]

    @property
    def key(self) -> Key:
        """Image and question, which tell official predictions apart: their ids are those of the images."""
        return self.image_id, self.question.lower()


def load(specification: DataSpecification) -> Benchmark:
    """The benchmark `textvqa=FILE_OR_FOLDER[?images=DIR&questions=FILE]`. Raises DataError for another structure."""
    options = specification.typed_options(OPTIONS)
    path = Path(specification.argument)
    path = path / ANNOTATIONS if path.is_dir() else path
    annotations = _annotations(path)
    answers = {annotation.key: annotation.answers for annotation in annotations}  # of equal questions the last one's
    prompts = prompts_in(options["questions"], answers, key_of_row) if options["questions"] else {}
    images = options["images"] or str(path.parent / "train_images")
    samples, rows = [], []
    for one in annotations:
        prompt = prompts.get(one.key) or f"{one.question}\n{PHRASE_SUFFIX}"
        image, label = ImageFile(images, f"{one.image_id}.jpg"), Counter(one.answers).most_common(1)[0][0]
        samples.append(asked_sample(one.question_id, image, prompt, label, ""))
        rows.append({"question_id": one.image_id, "prompt": prompt})
    return Benchmark(
        "textvqa",
        SampleSet(specification.canonical(), samples),
        rows,
        partial(grade, [answers[annotation.key] for annotation in annotations]),
        key=key_of_row,
        reads_prompts=True,
        asked={"ocr_tokens": any(OCR_MARK in prompt for prompt in prompts.values())},
    )


def _annotations(path: Path) -> list[Annotation]:
    rows = cell(json_object(path), "data")
    if not isinstance(rows, list):
        raise DataError(f"{path}: 'data' is a {type(rows).__name__}: expected TextVQA's list of annotations")
    found = []
    for number, row in enumerate(rows):
        with named(f"annotation {number} of {path}"):
            answers = row.get("answers") if isinstance(row, dict) else None
            if not isinstance(answers, list) or len(answers) != NUM_ANSWERS:
                raise DataError(f"it has not {NUM_ANSWERS} answers: give the validation set, whose answers are public")
            texts = tuple(text_of(answer, "an answer") for answer in answers)
            question_id, image_id, question = (text_in(row, name) for name in ("question_id", "image_id", "question"))
            found.append(Annotation(question_id, image_id, question, texts))
    return found


def key_of_row(row: Row) -> Key:
    """Image and question of a row of predictions."""
    return str(row["question_id"]), question_in(str(row["prompt"]))


def question_in(prompt: str) -> str:
    """The question inside a prompt, in lower case. Raises DataError for a prompt of none of the official forms."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search("Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found[1].lower()
    elif OCR_MARK in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(OCR_MARK.rstrip()) else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise DataError(
        f"the prompt {prompt!r} has no question in one of TextVQA's forms: expected QUESTION\\n{PHRASE_SUFFIX}"
    )


def accuracy(text: str, answers: Sequence[str]) -> float:
    """How far an answer agrees with ten people: the mean over them of min(matches among the others / 3, 1)."""
    matches = [normalised(answer) == normalised(text) for answer in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def grade(references: Sequence[Sequence[str]], predictions: Sequence[Prediction | None]) -> Grades:
    """The mean accuracy; `references` are the ten answers of every question."""
    texts = texts_of(predictions)
    correct = [accuracy(text, answers) for text, answers in zip(texts, references, strict=True)]
    tally = percent_tally(correct)
    return Grades(correct, [normalised(text) for text in texts], {"accuracy": tally.value()}, {"accuracy": tally})

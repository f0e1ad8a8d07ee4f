"""GQA by the rule of its eval.py, on predictions as LLaVA's convert_gqa_for_eval.py hands them over.

On disk: testdev_balanced_questions.json, images/ID.jpg. LLaVA's llava_gqa_testdev_balanced.jsonl may give the words.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from betakd_stages.data.images import ImageFile
from betakd_stages.data.json_rows import json_object
from betakd_stages.data.sample import SampleSet
from betakd_stages.data.specification import DataSpecification
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks.base import (
    PHRASE_SUFFIX,
    Benchmark,
    Grades,
    Prediction,
    asked_sample,
    percent_tally,
    question_id,
    texts_of,
)
from betakd_stages.evaluation.benchmarks.reading import named, prompts_in, text_in

QUESTIONS = "testdev_balanced_questions.json"
OPTIONS = {"images": "", "questions": ""}


@dataclass(frozen=True, slots=True)
class Reference:
    """A question's answer, structural type and global group of answers; only balanced questions count."""

    answer: str
    structural_type: str
    group: str | None = None
    is_balanced: bool = True


def load(specification: DataSpecification) -> Benchmark:
    """The benchmark `gqa=FILE_OR_FOLDER[?images=DIR&questions=FILE]`. Raises DataError for another structure."""
    options = specification.typed_options(OPTIONS)
    path = Path(specification.argument)
    path = path / QUESTIONS if path.is_dir() else path
    questions = json_object(path)
    prompts = prompts_in(options["questions"], questions, question_id) if options["questions"] else {}
    images = options["images"] or str(path.parent / "images")
    samples, references = [], []
    for number, question in questions.items():
        with named(f"question {number} of {path}"):
            reference = _reference(question)
            prompt = prompts.get(number) or f"{text_in(question, 'question')}\n{PHRASE_SUFFIX}"
            image = ImageFile(images, f"{text_in(question, 'imageId')}.jpg")
        samples.append(asked_sample(number, image, prompt, reference.answer, reference.structural_type))
        references.append(reference)
    rows = [{"question_id": sample.sample_id, "prompt": sample.turns[0].question} for sample in samples]
    return Benchmark("gqa", SampleSet(specification.canonical(), samples), rows, partial(grade, references))


def _reference(question: Any) -> Reference:
    types, groups = (question.get(name) if isinstance(question, dict) else None for name in ("types", "groups"))
    if not isinstance(types, dict) or "isBalanced" not in question:
        raise DataError("it lacks types or isBalanced: give GQA's own file of questions")
    group = groups.get("global") if isinstance(groups, dict) else None
    return Reference(text_in(question, "answer"), text_in(types, "structural"), group, question["isBalanced"] is True)


def parse(text: str) -> str:
    """An answer as it is compared: without full stops at its end, in lower case; spaces stay."""
    return text.rstrip(".").lower()


def grade(references: Sequence[Reference], predictions: Sequence[Prediction | None]) -> Grades:
    """Accuracy over balanced questions, over the open and the binary ones; how differently answers are spread."""
    parsed = [parse(text) for text in texts_of(predictions)]
    correct = [text == reference.answer for text, reference in zip(parsed, references, strict=True)]
    counted = [reference.is_balanced for reference in references]
    is_open = [reference.structural_type == "query" for reference in references]
    kinds = {
        "accuracy": counted,
        "open": [one and kind for one, kind in zip(counted, is_open, strict=True)],
        "binary": [one and not kind for one, kind in zip(counted, is_open, strict=True)],
    }
    tallies = {name: percent_tally(correct, chosen) for name, chosen in kinds.items() if any(chosen)}
    official = {name: tally.value() for name, tally in tallies.items()}
    if any(reference.group for reference in references):
        official["distribution"] = distribution(references, parsed)
    return Grades(correct, parsed, official, tallies)


def distribution(references: Sequence[Reference], parsed: Sequence[str]) -> float:
    """The chi-square statistic of answers against labels within each global group, over 100; lower is better."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for reference, text in zip(references, parsed, strict=True):
        if reference.is_balanced and reference.group is not None:
            labels[reference.group][reference.answer] += 1
            answers[reference.group][text] += 1
    total = sum(counts.total() for counts in labels.values())
    weighted = sum(
        counts.total() * sum((answers[group][label] - count) ** 2 / count for label, count in counts.items())
        for group, counts in labels.items()
    )
    return weighted / total / 100

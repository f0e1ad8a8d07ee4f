"""ScienceQA by the rule of LLaVA's eval_science_qa.py.

On disk: the authors' problems.json, pid_splits.json and images/. LLaVA's llava_test_CQM-A.json may give the questions.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from betakd_stages.data.conversation import PLACEHOLDER
from betakd_stages.data.sample import Sample, SampleSet
from betakd_stages.data.scienceqa import PROBLEMS, load_scienceqa
from betakd_stages.data.specification import DataSpecification
from betakd_stages.data.tables import cell
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks.base import (
    LETTER_SUFFIX,
    Benchmark,
    Grades,
    Prediction,
    asked_sample,
    official_prompt,
    percent_tally,
)
from betakd_stages.evaluation.benchmarks.reading import Row, read_rows, text_in

OPTIONS = {"split": "test", "images": "", "questions": ""}
LETTERS = tuple("ABCDE")
FAILED = "FAILED"
SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the full stop stands for any character, as in the official rule


def load(specification: DataSpecification) -> Benchmark:
    """The benchmark `scienceqa=FOLDER[?split=test&images=DIR&questions=FILE]`. Raises DataError for missing files."""
    options = specification.typed_options(OPTIONS)
    folder = Path(specification.argument)
    if not (folder / PROBLEMS).is_file():
        raise DataError(f"{folder} holds no {PROBLEMS}: give ScienceQA's folder, with pid_splits.json and images/")
    source = {key: value for key in ("split", "images") if (value := options[key])}
    problems = load_scienceqa(DataSpecification("scienceqa", specification.argument, source))
    samples = list(problems)
    if options["questions"]:
        samples = _asked_as_in(options["questions"], samples)
    rows = [{"question_id": sample.sample_id, "prompt": official_prompt(sample)} for sample in samples]
    return Benchmark(
        "scienceqa",
        SampleSet(specification.canonical(), samples),
        rows,
        partial(grade, [sample.turns[0].answer for sample in samples]),
        missing="wrong",
        reads_prompts=True,
        max_new_tokens=1024,
        asked={"split": options["split"]},
    )


def _asked_as_in(file: str, problems: Sequence[Sample]) -> list[Sample]:
    """The problems in the order and the words of LLaVA's file of questions."""
    left = {sample.sample_id: sample for sample in problems}

    def read(row: Row) -> Sample:
        pid = text_in(row, "id")
        if pid not in left:
            raise DataError(f"problem {pid!r} is not of this split, or asked twice: give the questions of the split")
        problem = left.pop(pid)
        image = problem.image if row.get("image") else None
        return asked_sample(pid, image, _question(row), problem.turns[0].answer, problem.category)

    samples = read_rows(file, read)
    if left:
        raise DataError(f"{file} lacks problem {next(iter(left))!r}: give the questions of the whole split")
    return samples


def _question(row: Row) -> str:
    messages = cell(row, "conversations")
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        raise DataError("its 'conversations' is no list of messages: give LLaVA's file of questions")
    text = text_in(messages[0], "value").replace(PLACEHOLDER, "").strip()
    return text if text.endswith(LETTER_SUFFIX) else f"{text}\n{LETTER_SUFFIX}"


def parse(text: str) -> str:
    """The letter that an answer gives, or FAILED."""
    if text in LETTERS or (text[:1] in LETTERS and text[1:3] == ". "):
        return text[0]
    found = SENTENCE.findall(text)
    return found[0] if len(found) == 1 else FAILED


def grade(labels: Sequence[str], predictions: Sequence[Prediction | None]) -> Grades:
    """Accuracy over all problems, missing ones wrong, and over the predictions whose prompt shows an image."""
    parsed = [FAILED if prediction is None else parse(prediction.text) for prediction in predictions]
    correct = [letter == label for letter, label in zip(parsed, labels, strict=True)]
    shown = [prediction is not None and PLACEHOLDER in prediction.prompt for prediction in predictions]
    tallies = {"accuracy": percent_tally(correct)}
    if any(shown):
        tallies["img_accuracy"] = percent_tally(correct, shown)
    official = {name: tally.value() for name, tally in tallies.items()}
    counts = {"num_correct": sum(correct), "num_with_image": sum(shown), "num_failed": parsed.count(FAILED)}
    return Grades(correct, parsed, {**official, **counts}, tallies)

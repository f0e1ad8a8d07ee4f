"""`evaluate`: a model's greedy answers on benchmarks, written as predictions.jsonl and scores.json.

One benchmark fills the folder itself; several fill a folder each, and scores.json holds the scores of all.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_stages.errors import ConfigError, DataError
from betakd_stages.evaluation.answers import AnswersUnderWay, require_same
from betakd_stages.evaluation.benchmarks import load_benchmark
from betakd_stages.evaluation.benchmarks.base import Benchmark, Grades, Prediction
from betakd_stages.evaluation.generation import Answer, Answerer, opened_answerer
from betakd_stages.evaluation.metrics import percent, percent_by_quartile
from betakd_stages.evaluation.scoring import scores_of, six_benchmark_average
from betakd_stages.files import write_atomically
from betakd_stages.models.loading import model_folder, weights_sha256
from betakd_stages.progress import Progress
from betakd_stages.settings import EvaluateSettings

PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"
UNDER_WAY = "answers-under-way.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Task:
    """One benchmark, where its results go, and what identifies them."""

    benchmark: Benchmark
    out: Path
    reference: Path | None
    subject: Mapping[str, Any]

    @property
    def max_new_tokens(self) -> int:
        return int(self.subject["max_new_tokens"])


def evaluate(settings: EvaluateSettings, out: Path, *, progress: Progress) -> dict[str, Any]:
    """The scores, also written to `out`/scores.json; done again only if model or benchmark changed.

    An interrupted evaluation goes on with the batch it was at, to the same result.
    Raises ModelError, DataError for inputs that cannot be read, ConfigError where `out` holds other scores.
    """
    tasks = _tasks(settings, out)
    references = [_reference(task) for task in tasks]
    finished = [_finished_scores(task) for task in tasks]
    with ExitStack() as stack:
        opened = functools.cache(lambda: stack.enter_context(opened_answerer(settings)))
        scores = [
            there or _evaluate(task, reference, opened, settings.batch_size, progress)
            for task, reference, there in zip(tasks, references, finished, strict=True)
        ]
    if len(scores) == 1:
        return scores[0]
    by_name = {task.benchmark.name: one for task, one in zip(tasks, scores, strict=True)}
    average = six_benchmark_average(by_name)
    summary = {"benchmarks": by_name, **({} if average is None else {"six_benchmark_average": average})}
    write_atomically(out / SCORES, json.dumps(summary, indent=2) + "\n")
    return summary


def _tasks(settings: EvaluateSettings, out: Path) -> list[_Task]:
    benchmarks = [load_benchmark(text) for text in settings.benchmark]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ConfigError(f"benchmarks {', '.join(names)}: each may be named once in an evaluation, use several --out")
    weights = weights_sha256(model_folder(settings.model))
    tasks = []
    for benchmark in benchmarks:
        subject = {
            "benchmark": benchmark.samples.specification,
            "questions_sha256": benchmark.samples.fingerprint,
            "weights_sha256": weights,
            "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
            "backend": settings.backend,
            "precision": settings.precision,
        }
        inside = benchmark.name if len(benchmarks) > 1 else "."
        reference = Path(settings.reference) / inside if settings.reference else None
        tasks.append(_Task(benchmark, out / inside, reference, subject))
    return tasks


def _evaluate(
    task: _Task,
    reference: Mapping[str, Mapping[str, Any]] | None,
    opened: Callable[[], Answerer],
    batch_size: int,
    progress: Progress,
) -> dict[str, Any]:
    answerer = opened()  # before anything is written: a model that cannot be had leaves no folder
    task.out.mkdir(parents=True, exist_ok=True)
    under_way = AnswersUnderWay(task.out / UNDER_WAY, task.subject, batch_size)
    answers = _answer_all(task, under_way, answerer, batch_size, progress)
    predictions = [
        Prediction(answer.text, str(row["prompt"]), answer.confidence)
        for answer, row in zip(answers, task.benchmark.rows, strict=True)
    ]
    grades = task.benchmark.grade(predictions)
    rows = _prediction_rows(task.benchmark, predictions, grades)
    scores = {**task.subject, **scores_of(task.benchmark, predictions, grades)}
    if reference is not None:
        scores |= _beside_reference(rows, reference)
    write_atomically(task.out / PREDICTIONS, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(task.out / SCORES, json.dumps(scores, indent=2) + "\n")
    under_way.remove()
    return scores


def _answer_all(
    task: _Task, under_way: AnswersUnderWay, answerer: Answerer, batch_size: int, progress: Progress
) -> Sequence[Answer]:
    samples, num_done = task.benchmark.samples, len(under_way.answers)
    progress.start(f"evaluate {task.benchmark.name}", total=len(samples))
    try:
        if num_done:
            logger.info("%s: goes on behind %d answers of before", task.benchmark.name, num_done)
            progress.advance(num_done)
        answers = answerer(samples[num_done:], batch_size=batch_size, max_new_tokens=task.max_new_tokens)
        for batch in answers:
            under_way.append(batch)
            progress.advance(len(batch))
    finally:
        progress.finish()
    return under_way.answers


def _prediction_rows(benchmark: Benchmark, predictions: Sequence[Prediction], grades: Grades) -> list[dict[str, Any]]:
    """What is known of every answer, and beside it the fields that official scorers read."""
    return [
        {
            "sample_id": sample.sample_id,
            "category": sample.category,
            "question": sample.turns[0].question,
            "label": sample.turns[0].answer,
            "answer": prediction.text,
            "confidence": prediction.confidence,
            "correct": correct,
            "parsed": parsed,
            **row,
            "text": prediction.text,
        }
        for sample, row, prediction, correct, parsed in zip(
            benchmark.samples, benchmark.rows, predictions, grades.correct, grades.parsed, strict=True
        )
    ]


def _reference(task: _Task) -> Mapping[str, Mapping[str, Any]] | None:
    """The predictions of the finished evaluation that this one is held against, by sample id."""
    if task.reference is None:
        return None
    try:
        lines = (task.reference / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise DataError(
            f"{task.reference} holds no {PREDICTIONS}: run `betakd-pipe evaluate TEACHER` into it first"
        ) from None
    reference = {item["sample_id"]: item for item in map(json.loads, lines)}
    missing = [sample.sample_id for sample in task.benchmark.samples if sample.sample_id not in reference]
    if missing:
        raise DataError(f"the reference lacks {missing[0]!r}: evaluate the teacher on the same benchmark")
    return reference


def _beside_reference(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How often the reference gives the same answer, and accuracy by how sure it is of its own."""
    theirs = [reference[row["sample_id"]] for row in rows]
    same = [row["answer"] == other["answer"] for row, other in zip(rows, theirs, strict=True)]
    correct = [row["correct"] for row in rows]
    return {
        "agreement": percent(same),
        "accuracy_by_reference_confidence": percent_by_quartile([other["confidence"] for other in theirs], correct),
    }


def _finished_scores(task: _Task) -> dict[str, Any] | None:
    """The scores that are there already for this subject; none if there are none."""
    if not (task.out / SCORES).is_file():
        return None
    scores: dict[str, Any] = json.loads((task.out / SCORES).read_text(encoding="utf-8"))
    require_same(task.out, scores, task.subject)
    return scores

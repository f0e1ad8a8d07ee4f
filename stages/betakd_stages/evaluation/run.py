"""`evaluate`: a model's greedy answers on benchmarks, written as predictions.jsonl and scores.json.

One benchmark fills the folder itself; several fill a folder each, and scores.json holds the scores of all. What is
asked of a benchmark's held-out part lies in calibration/ in its folder.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_stages.evaluation.answers import UnderWay
from betakd_stages.evaluation.benchmarks.base import Benchmark, Grades, Prediction
from betakd_stages.evaluation.draws import (
    Draw,
    DrawnStudents,
    ask_draws,
    credible_intervals,
    draw_scores,
    predictions_of,
    predictive_means,
)
from betakd_stages.evaluation.generation import Answer, Answerer, opened_answerer
from betakd_stages.evaluation.matching import matching
from betakd_stages.evaluation.metrics import calibration_scores, percent, percent_by_quartile
from betakd_stages.evaluation.preparation import PREDICTIONS, SCORES, Task, prepared
from betakd_stages.evaluation.scoring import scores_of, six_benchmark_average
from betakd_stages.evaluation.temperature_scaling import fitted_temperature, scaled
from betakd_stages.files import write_atomically
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.progress import Progress
from betakd_stages.settings import EvaluateSettings

UNDER_WAY = "answers-under-way.jsonl"

DRAWS_UNDER_WAY = "draws-under-way.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """The one model of an evaluation, loaded at the first call of any of these."""

    opened: Callable[[], Answerer]
    loaded: Callable[[], LoadedModel]
    students: Callable[[], DrawnStudents]
    """What it can become, where draws are asked for."""


def evaluate(settings: EvaluateSettings, out: Path, *, progress: Progress) -> dict[str, Any]:
    """The scores, also written to `out`/scores.json; done again only if model or benchmark changed.

    An interrupted evaluation goes on with the batch it was at, to the same result. Raises what `prepared` raises.
    """
    tasks = prepared(settings, out)
    students = functools.cache(lambda: DrawnStudents(Path(settings.model)))
    loaded = functools.cache(
        lambda: students().student if settings.draws else load_model(settings.model, settings.precision)
    )
    with ExitStack() as stack:
        opened = functools.cache(lambda: stack.enter_context(opened_answerer(settings, loaded)))
        asked = Asked(opened, loaded, students)
        scores = [task.finished or _evaluate(task, asked, progress) for task in tasks]
    if len(scores) == 1:
        return scores[0]
    by_name = {task.benchmark.name: one for task, one in zip(tasks, scores, strict=True)}
    average = six_benchmark_average(by_name)
    summary = {"benchmarks": by_name, **({} if average is None else {"six_benchmark_average": average})}
    write_atomically(out / SCORES, json.dumps(summary, indent=2) + "\n")
    return summary


def _evaluate(task: Task, asked: Asked, progress: Progress) -> dict[str, Any]:
    settings = task.settings
    answerer = asked.opened()  # before anything is written: a model that cannot be had leaves no folder
    task.out.mkdir(parents=True, exist_ok=True)
    whose = {**task.subject, "batch_size": settings.batch_size}
    with ExitStack() as stack:
        under_way = stack.enter_context(UnderWay(task.out / UNDER_WAY, Answer, whose, settings.batch_size))
        answers = _answer_all(task, under_way, answerer, progress)
        own = [answer.confidence for answer in answers]
        draws: Sequence[Draw] = []
        if settings.draws:
            drawn = stack.enter_context(UnderWay(task.out / DRAWS_UNDER_WAY, Draw, whose, 1))
            draws = ask_draws(task, answers, asked.students(), drawn, progress)
        predictions = predictions_of(task.benchmark, answers, predictive_means(draws) if draws else own)
        grades = task.benchmark.grade(predictions)
        rows = _prediction_rows(task.benchmark, predictions, grades)
        scores = {**task.subject, **scores_of(task.benchmark, predictions, grades)}
        if draws:
            for row, interval, confidence in zip(rows, credible_intervals(draws, settings), own, strict=True):
                row |= {"credible_interval": interval, "map_confidence": confidence}
            scores |= draw_scores(draws, own, grades.correct, settings)
        if task.held_out is not None:
            scores["temperature_scaling"] = _temperature_scaling(task.held_out, own, grades.correct, asked, progress)
        if task.reference is not None:
            scores |= _beside_reference(rows, task.reference)
        if task.records is not None:
            scores["matching"] = matching(task.records, asked.loaded(), settings.batch_size, progress)
        write_atomically(task.out / PREDICTIONS, "".join(json.dumps(row) + "\n" for row in rows))
        write_atomically(task.out / SCORES, json.dumps(scores, indent=2) + "\n")
        (task.out / DRAWS_UNDER_WAY).unlink(missing_ok=True)  # first: they are of the answers
        under_way.remove()
    return scores


def _temperature_scaling(
    held_out: Task, confidences: Sequence[float], correct: Sequence[float], asked: Asked, progress: Progress
) -> dict[str, Any]:
    """What temperature scaling, fitted on the held-out part, makes of these confidences; that part is asked first."""
    known = held_out.finished or _evaluate(held_out, asked, progress)
    rows = [json.loads(line) for line in (held_out.out / PREDICTIONS).read_text(encoding="utf-8").splitlines()]
    fitted = fitted_temperature([row["confidence"] for row in rows], [row["correct"] for row in rows])
    return {
        "temperature": fitted,
        "fitted_on": known["benchmark"],
        **calibration_scores(scaled(confidences, fitted), correct),
    }


def _answer_all(task: Task, under_way: UnderWay[Answer], answerer: Answerer, progress: Progress) -> Sequence[Answer]:
    samples, num_done = task.benchmark.samples, len(under_way.rows)
    if num_done:
        logger.info("%s: goes on behind %d answers of before", task.benchmark.name, num_done)
    progress.start(f"evaluate {task.benchmark.name}", total=len(samples), done=num_done)
    try:
        answers = answerer(samples[num_done:], batch_size=task.settings.batch_size, max_new_tokens=task.max_new_tokens)
        for batch in answers:
            under_way.append(batch)
            progress.advance(len(batch))
    finally:
        progress.finish()
    return under_way.rows


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


def _beside_reference(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How often the reference gives the same answer, and accuracy by how sure it is of its own."""
    theirs = [reference[row["sample_id"]] for row in rows]
    same = [row["answer"] == other["answer"] for row, other in zip(rows, theirs, strict=True)]
    correct = [row["correct"] for row in rows]
    return {
        "agreement": percent(same),
        "accuracy_by_reference_confidence": percent_by_quartile([other["confidence"] for other in theirs], correct),
    }

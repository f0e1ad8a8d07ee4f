"""Scores of predictions, whoever made them: the official numbers with their intervals, calibration, comparisons."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from betakd_stages.data.conversation import PLACEHOLDER
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks import load_benchmark
from betakd_stages.evaluation.benchmarks.base import Benchmark, Grades, Prediction
from betakd_stages.evaluation.bootstrap import Tally, bootstrap, mcnemar, paired_bootstrap
from betakd_stages.evaluation.metrics import calibration, percent, percent_by
from betakd_stages.evaluation.predictions import read_predictions

SEED = 0
AVERAGED = {
    "gqa": ("accuracy", 1.0),
    "mmbench": ("circular_accuracy", 1.0),
    "mme": ("perception", 1 / 20),
    "pope": ("mean_f1", 1.0),
    "scienceqa": ("img_accuracy", 1.0),
    "textvqa": ("accuracy", 1.0),
}
"""What the average of the MobileVLM papers is of, and what makes it a number of up to 100."""

logger = logging.getLogger(__name__)


def score_file(benchmark_name: str, path: Path, against: Path | None = None) -> dict[str, Any]:
    """The scores of a file of predictions, and how they differ from those of another file.

    Raises DataError for files that are not the benchmark's predictions.
    """
    benchmark = load_benchmark(benchmark_name)
    predictions = read_predictions(path, benchmark)
    grades = benchmark.grade(predictions)
    scores = {"benchmark": benchmark.samples.specification, **scores_of(benchmark, predictions, grades)}
    if against is not None:
        scores["difference"] = differences(benchmark, predictions, grades, read_predictions(against, benchmark))
    return scores


def scores_of(benchmark: Benchmark, predictions: Sequence[Prediction | None], grades: Grades) -> dict[str, Any]:
    """Accuracy, all and by category; the official numbers, their 95 % intervals; calibration, where all have a
    confidence."""
    categories = [sample.category for sample in benchmark.samples]
    num_missing = sum(prediction is None for prediction in predictions)
    if num_missing:
        logger.warning("%s: %d questions have no prediction; they count as wrong", benchmark.name, num_missing)
    scores: dict[str, Any] = {
        **benchmark.asked,
        "num_questions": len(predictions),
        "num_missing": num_missing,
        "accuracy": percent(grades.correct),
        "accuracy_by_category": percent_by(categories, grades.correct),
        "official": dict(grades.official),
        "intervals": {name: _interval(tally) for name, tally in grades.tallies.items()},
    }
    confidences = [prediction.confidence for prediction in predictions if prediction is not None]
    known = [confidence for confidence in confidences if confidence is not None]
    if len(known) == len(predictions):
        scores |= calibration(known, grades.correct)
    return scores


def differences(
    benchmark: Benchmark,
    predictions: Sequence[Prediction | None],
    grades: Grades,
    others: Sequence[Prediction | None],
) -> dict[str, Any]:
    """How far the official numbers are above those of other predictions, by a paired bootstrap over the units; and
    McNemar's p-value for right and wrong, where nothing is half right.

    Raises DataError where one file shows an image with a question and the other does not.
    """
    other_grades = benchmark.grade(others)
    for row, own, other in zip(benchmark.rows, predictions, others, strict=True):
        if (PLACEHOLDER in (own.prompt if own else "")) != (PLACEHOLDER in (other.prompt if other else "")):
            raise DataError(
                f"question {row['question_id']!r} has {PLACEHOLDER} in its prompt in one file of predictions alone: "
                "compare predictions to the same prompts"
            )
    found: dict[str, Any] = {}
    for name, tally in grades.tallies.items():
        paired = paired_bootstrap(tally, other_grades.tallies[name], SEED)
        interval = [paired.interval.low, paired.interval.high]
        found[name] = {"difference": paired.difference, "interval": interval, "p_value": paired.p_value}
    if {*grades.correct, *other_grades.correct} <= {0, 1}:
        found["mcnemar_p_value"] = mcnemar(grades.correct, other_grades.correct)
    return found


def six_benchmark_average(scores: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The average of the six benchmarks, up to 100, from the scores of each by name; none unless all six are there."""
    parts = [
        scale * scores[name]["official"][number]
        for name, (number, scale) in AVERAGED.items()
        if name in scores and number in scores[name]["official"]
    ]
    return sum(parts) / len(parts) if len(parts) == len(AVERAGED) else None


def _interval(tally: Tally) -> list[float]:
    interval = bootstrap(tally, SEED)
    return [interval.low, interval.high]

"""`evaluate`: a model's greedy answers on a benchmark, written as predictions.jsonl and scores.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from betakd_stages.errors import ConfigError, DataError
from betakd_stages.evaluation.benchmarks import Benchmark, load_benchmark
from betakd_stages.evaluation.generation import Answer, greedy_answers
from betakd_stages.evaluation.metrics import expected_calibration_error, percent, percent_by
from betakd_stages.files import write_atomically
from betakd_stages.models.loading import load_model, model_folder, weights_sha256
from betakd_stages.progress import Progress
from betakd_stages.settings import EvaluateSettings

PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"


def evaluate(settings: EvaluateSettings, out: Path, *, progress: Progress) -> dict[str, Any]:
    """The scores, also written to `out`/scores.json; done again only if model or benchmark changed.

    Raises ModelError, DataError for inputs that cannot be read, ConfigError where `out` holds other scores.
    """
    benchmark = load_benchmark(settings.benchmark)
    subject = {
        "benchmark": benchmark.samples.specification,
        "weights_sha256": weights_sha256(model_folder(settings.model)),
        "max_new_tokens": settings.max_new_tokens,
    }
    finished = _finished_scores(out, subject)
    if finished is not None:
        return finished
    reference = _answers_of(Path(settings.reference)) if settings.reference else None
    answers = _answer_all(settings, benchmark, progress)
    predictions = [
        {
            "sample_id": sample.sample_id,
            "category": sample.category,
            "question": sample.turns[0].question,
            "label": sample.turns[0].answer,
            "answer": answer.text,
            "confidence": answer.confidence,
            "correct": benchmark.is_correct(answer.text, sample.turns[0].answer),
        }
        for sample, answer in zip(benchmark.samples, answers, strict=True)
    ]
    scores = {**subject, **_score(predictions, reference)}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PREDICTIONS, "".join(json.dumps(prediction) + "\n" for prediction in predictions))
    write_atomically(out / SCORES, json.dumps(scores, indent=2) + "\n")
    return scores


def _answer_all(settings: EvaluateSettings, benchmark: Benchmark, progress: Progress) -> list[Answer]:
    loaded = load_model(settings.model)
    answers: list[Answer] = []
    progress.start(f"evaluate {benchmark.name}", total=len(benchmark.samples))
    try:
        for batch in greedy_answers(
            loaded, benchmark.samples, batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens
        ):
            answers += batch
            progress.advance(len(batch))
    finally:
        progress.finish()
    return answers


def _score(predictions: Sequence[Mapping[str, Any]], reference: Mapping[str, str] | None) -> dict[str, Any]:
    correct = [prediction["correct"] for prediction in predictions]
    categories = [prediction["category"] for prediction in predictions]
    scores: dict[str, Any] = {
        "num_questions": len(predictions),
        "accuracy": percent(correct),
        "accuracy_by_category": percent_by(categories, correct),
        "expected_calibration_error": expected_calibration_error(
            [prediction["confidence"] for prediction in predictions], correct
        ),
    }
    if reference is not None:
        missing = [prediction["sample_id"] for prediction in predictions if prediction["sample_id"] not in reference]
        if missing:
            raise DataError(f"the reference lacks {missing[0]!r}: evaluate the teacher on the same benchmark")
        scores["agreement"] = percent([item["answer"] == reference[item["sample_id"]] for item in predictions])
    return scores


def _answers_of(folder: Path) -> dict[str, str]:
    """The answers of a finished evaluation by sample id."""
    try:
        lines = (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise DataError(f"{folder} holds no {PREDICTIONS}: run `betakd-pipe evaluate TEACHER` into it first") from None
    return {item["sample_id"]: item["answer"] for item in map(json.loads, lines)}


def _finished_scores(out: Path, subject: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores that `out` holds already for this subject; none if it holds no scores."""
    if not (out / SCORES).is_file():
        return None
    scores: dict[str, Any] = json.loads((out / SCORES).read_text(encoding="utf-8"))
    for key, value in subject.items():
        if scores.get(key) != value:
            raise ConfigError(
                f"{out} holds scores of another evaluation: {key} is {scores.get(key)!r} there and {value!r} here. "
                "Choose another --out or remove the folder"
            )
    return scores

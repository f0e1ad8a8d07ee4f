"""How sure a student is: students drawn from its posterior answer a benchmark, too, and say what they think of its
answers.

D draws, Q questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError

from betakd_stages.data.sample import Sample
from betakd_stages.distillation.cached_targets import labels_only
from betakd_stages.distillation.distiller import load_tensors
from betakd_stages.distillation.student import load_student
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.encoding.written import WrittenAnswer, with_answers
from betakd_stages.errors import ConfigError, ModelError
from betakd_stages.evaluation.answers import UnderWay
from betakd_stages.evaluation.benchmarks.base import Benchmark, Prediction
from betakd_stages.evaluation.generation import Answer, greedy_answers
from betakd_stages.evaluation.metrics import area_under_risk_coverage, calibration_scores, percent
from betakd_stages.evaluation.preparation import Task
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import LoadedModel, first_line, model_folder, weights_sha256
from betakd_stages.posterior.snapshot_files import (
    MAP,
    mixed,
    posterior_folder,
    require_base,
    shares_of_draw,
    snapshot_paths,
)
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings, EvaluateSettings
from betakd_stages.statistics import Head, Needs, student_statistics

RUN_SETTINGS = "config.yaml"
AS_EVALUATED = {"precision": "fp32", "attention": "auto", "gradient_checkpointing": False}
"""What a student computed in while it trained does not matter any more; some attention needs 16 bits."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What one drawn student made of a benchmark."""

    probabilities: Sequence[float]
    """`[Q]`, of the run's own student's answers."""
    numbers: Mapping[str, float]
    """Of this student's own greedy answers: accuracy, calibration error, official numbers."""


class DrawnStudents:
    """The student of a run, as the run ended with it or as a draw from its posterior: one model in memory."""

    def __init__(self, run: Path) -> None:
        """The student that the run ended with. Raises ConfigError for a run without posterior or settings, ModelError
        where the student that it started from is another by now, or cannot be loaded."""
        self._folder = posterior_folder(run)
        settings = run_settings(run)
        base = model_folder(settings.student)
        require_base(self._folder, base, weights_sha256(base))
        training = settings.training.model_copy(update=AS_EVALUATED)
        # Not the run's max_length either: questions may be longer than what it trained on.
        self.student = load_student(settings.model_copy(update={"training": training, "max_length": None}))
        self.become_map()

    def become_map(self) -> None:
        """Take the weights that the run ended with."""
        load_tensors(self.student.model, mixed([self._folder / MAP], [1.0]))

    def become_draw(self, seed: int, draw: int) -> None:
        """Take weights from the Gaussian that the snapshots span."""
        paths = snapshot_paths(self._folder)
        load_tensors(self.student.model, mixed(paths, shares_of_draw(len(paths), seed, draw)))


def run_settings(run: Path) -> DistillSettings:
    """The settings of a run of stage two. Raises ConfigError where its folder does not hold them."""
    path = run / RUN_SETTINGS
    try:
        return DistillSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(
            f"{path} cannot be read as the settings of a run ({first_line(error)}): name the folder of a run of distill"
        ) from None


def ask_draws(
    task: Task, answers: Sequence[Answer], students: DrawnStudents, under_way: UnderWay[Draw], progress: Progress
) -> list[Draw]:
    """What each of the task's `draws` students made of its benchmark; `answers` are the run's own student's.

    Each draw is added to `under_way`, and those that it holds are not made again. The student is the run's own again
    afterwards. Raises ModelError for an answer that cannot be read back.
    """
    benchmark, settings = task.benchmark, task.settings
    num_done = len(under_way.rows)
    progress.start(f"{benchmark.name} draws", total=settings.draws, done=num_done)
    try:
        for index in range(num_done, settings.draws):
            students.become_draw(settings.seed, index)
            own = greedy_answers(
                students.student, benchmark.samples, batch_size=settings.batch_size, max_new_tokens=task.max_new_tokens
            )
            numbers = _numbers(benchmark, [answer for batch in own for answer in batch])
            probabilities = answer_probabilities(students.student, benchmark.samples, answers, settings.batch_size)
            under_way.append([Draw(probabilities, numbers)])
            progress.advance(1)
    finally:
        progress.finish()
        students.become_map()
    return under_way.rows


@torch.inference_mode()
def answer_probabilities(
    student: LoadedModel, samples: Sequence[Sample], answers: Sequence[Answer], batch_size: int
) -> list[float]:
    """The probability `[Q]` that the student gives to all tokens of each answer together, one forward pass a batch."""
    model, encoder = student.model.eval(), student.encoder
    embeddings = model.get_output_embeddings()
    head = Head(embeddings.weight, embeddings.bias)
    probabilities: list[float] = []
    for start in range(0, len(answers), batch_size):
        pairs = zip(samples[start : start + batch_size], answers[start : start + batch_size], strict=True)
        encoded = [_answered(encoder, sample, answer) for sample, answer in pairs]
        batch = {name: value.to(model.device) for name, value in encoder.collate(encoded).items()}
        rows = answer_rows(model, batch)
        targets = labels_only(rows.gold_ids, rows.sample_index, len(encoded), encoder.vocabulary_size)
        surprise = student_statistics(rows.hidden, head, targets, Needs()).cross_entropy()
        log_probabilities = surprise.new_zeros(len(encoded)).index_add(0, rows.sample_index, -surprise)
        probabilities += log_probabilities.exp().tolist()
    return probabilities


def _answered(encoder: Encoder, sample: Sample, answer: Answer) -> EncodedSample:
    ids = tuple(answer.token_ids)
    if encoder.image_token_id in ids:
        raise ModelError(
            f"the answer to {sample.sample_id!r} holds {encoder.image_token!r}, which stands for an image and cannot "
            "be read back as text: train the student longer, or leave --draws out"
        )
    return with_answers(encoder.encode(sample), [WrittenAnswer(ids, is_cut=ids[-1] not in encoder.end_token_ids)])


def predictions_of(benchmark: Benchmark, answers: Sequence[Answer], confidences: Sequence[float]) -> list[Prediction]:
    """The answers as the benchmark's rule reads them, with these confidences `[Q]`."""
    return [
        Prediction(answer.text, str(row["prompt"]), confidence)
        for answer, row, confidence in zip(answers, benchmark.rows, confidences, strict=True)
    ]


def _numbers(benchmark: Benchmark, answers: Sequence[Answer]) -> dict[str, float]:
    confidences = [answer.confidence for answer in answers]
    grades = benchmark.grade(predictions_of(benchmark, answers, confidences))
    return {
        "accuracy": percent(grades.correct),
        **calibration_scores(confidences, grades.correct),
        **{f"official.{name}": tally.value() for name, tally in grades.tallies.items()},
    }


def predictive_means(draws: Sequence[Draw]) -> list[float]:
    """The posterior predictive probability `[Q]` of each answer: the mean over the draws."""
    means: list[float] = np.mean([draw.probabilities for draw in draws], axis=0).tolist()
    return means


def credible_intervals(draws: Sequence[Draw], settings: EvaluateSettings) -> list[list[float]]:
    """For each answer where the middle `interval_level` of the draws put its probability, `[Q]` pairs."""
    return quantiles([draw.probabilities for draw in draws], settings.interval_level)


def draw_scores(
    draws: Sequence[Draw], own: Sequence[float], correct: Sequence[float], settings: EvaluateSettings
) -> dict[str, Any]:
    """For scores.json: means and credible intervals of the drawn students' numbers, and the calibration of the run's
    student alone, whose confidences are `own`."""
    names = list(draws[0].numbers)
    values = [[draw.numbers[name] for name in names] for draw in draws]
    area = {"area_under_risk_coverage": area_under_risk_coverage(own, correct)}
    return {
        "credible_intervals": dict(zip(names, quantiles(values, settings.interval_level), strict=True)),
        "mean_of_draws": dict(zip(names, np.mean(values, axis=0).tolist(), strict=True)),
        "map": {**calibration_scores(own, correct), **area},
    }


def quantiles(values: Sequence[Sequence[float]], level: float) -> list[list[float]]:
    """The ends of the middle `level` of the draws, a pair for each column of `[D, X]`."""
    pairs: list[list[float]] = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0).T.tolist()
    return pairs

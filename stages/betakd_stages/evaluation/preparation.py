"""An evaluation before it begins: each benchmark with its folder, what identifies it, and what it is held against."""

import functools
import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_stages.data.sample import Sample
from betakd_stages.distillation.held_out import HeldOutRecords
from betakd_stages.encoding import Encoder
from betakd_stages.errors import ConfigError, DataError
from betakd_stages.evaluation.answers import require_same
from betakd_stages.evaluation.benchmarks import load_benchmark
from betakd_stages.evaluation.benchmarks.base import Benchmark
from betakd_stages.evaluation.matching import records_of
from betakd_stages.models.loading import load_encoder, model_folder, weights_sha256
from betakd_stages.posterior.snapshot_files import posterior_folder, snapshots_sha256
from betakd_stages.settings import EvaluateSettings

PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"
CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class Task:
    """One benchmark as an evaluation of its own."""

    benchmark: Benchmark
    settings: EvaluateSettings
    """Those of this benchmark alone; `evaluate` with them fills `out` as it does with all together."""
    out: Path
    subject: Mapping[str, Any]
    """What identifies the answers."""
    reference: Mapping[str, Mapping[str, Any]] | None
    """The predictions of the finished evaluation that this one is held against, by sample id."""
    records: HeldOutRecords | None
    """What the teacher says of the questions; None where no cache is named, and where the scores are there."""
    finished: dict[str, Any] | None
    """The scores that are there already."""
    held_out: "Task | None" = None
    """Other questions, on which temperature scaling is fitted; in a folder of their own."""

    @property
    def max_new_tokens(self) -> int:
        """Of an answer at most."""
        return int(self.subject["max_new_tokens"])


def prepared(settings: EvaluateSettings, out: Path) -> list[Task]:
    """The benchmarks of an evaluation, everything read that can be refused; nothing is written and no model loaded.

    Raises ModelError, DataError, MismatchError or CacheError for inputs that cannot be read or do not belong together,
    ConfigError where `out` holds other scores.
    """
    benchmarks = [load_benchmark(text) for text in settings.benchmark]
    parts = [load_benchmark(text) for text in settings.calibrate_on]
    names = _names(benchmarks)
    held_out = dict(zip(_names(parts), zip(settings.calibrate_on, parts, strict=True), strict=True))
    for name in held_out:
        if name not in names:
            raise ConfigError(
                f"calibrate_on names {name}, which is not evaluated: name another part of {', '.join(names)}"
            )
    weights = weights_sha256(model_folder(settings.model))
    encoder = functools.cache(lambda: load_encoder(settings.model))
    tasks = []
    for text, benchmark in zip(settings.benchmark, benchmarks, strict=True):
        calibrate_on, part = held_out.get(benchmark.name, (None, None))
        alone, folder = settings, out
        if len(benchmarks) > 1:
            alone, folder = _alone(settings, text, benchmark.name, calibrate_on), out / benchmark.name
        tasks.append(_task(benchmark, part, alone, folder, weights, encoder))
    return tasks


def _names(benchmarks: Sequence[Benchmark]) -> list[str]:
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ConfigError(f"benchmarks {', '.join(names)}: each may be named once in an evaluation, use several --out")
    return names


def _alone(settings: EvaluateSettings, benchmark: str, name: str, held_out: str | None) -> EvaluateSettings:
    """The settings of one benchmark of several: what it is held against is in a folder of its name."""
    beside = {key: value and f"{value}/{name}" for key in ("reference", "cache") for value in [getattr(settings, key)]}
    calibrate_on = () if held_out is None else (held_out,)
    return settings.model_copy(update={"benchmark": (benchmark,), "calibrate_on": calibrate_on, **beside})


def _task(
    benchmark: Benchmark,
    part: Benchmark | None,
    settings: EvaluateSettings,
    out: Path,
    weights: str,
    encoder: Callable[[], Encoder],
) -> Task:
    """What is asked of one benchmark; `part` is its held-out one."""
    subject = {
        "benchmark": benchmark.samples.specification,
        "questions_sha256": benchmark.samples.fingerprint,
        "weights_sha256": weights,
        "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
        "backend": settings.backend,
        "precision": settings.precision,
    }
    if settings.draws:
        snapshots = snapshots_sha256(posterior_folder(Path(settings.model)))
        chosen = {name: getattr(settings, name) for name in ("draws", "interval_level", "seed")}
        subject["posterior"] = {"sha256": snapshots, **chosen}
    held_out = None if part is None else _held_out(part, benchmark, settings, out, weights, encoder)
    if held_out is not None:
        subject["calibrated_on"] = held_out.subject["questions_sha256"]
    reference = None if settings.reference is None else _reference(Path(settings.reference), benchmark)
    finished = _finished_scores(out, subject)
    wanted = settings.cache if finished is None else None
    records = None if wanted is None else records_of(wanted, benchmark.samples, encoder(), settings.on_mismatch)
    return Task(benchmark, settings, out, subject, reference, records, finished, held_out)


def _held_out(
    part: Benchmark,
    benchmark: Benchmark,
    settings: EvaluateSettings,
    out: Path,
    weights: str,
    encoder: Callable[[], Encoder],
) -> Task:
    """What temperature scaling is fitted on. Raises ConfigError where questions of the benchmark are among that."""
    if num_shared := _num_shared(part.samples, benchmark.samples):
        raise ConfigError(
            f"calibrate_on {part.samples.specification} holds {num_shared} of the questions that are evaluated "
            f"({benchmark.samples.specification}): name others"
        )
    plain = {"benchmark": settings.calibrate_on, "calibrate_on": (), "draws": 0, "reference": None, "cache": None}
    return _task(part, None, settings.model_copy(update=plain), out / CALIBRATION, weights, encoder)


def _num_shared(samples: Sequence[Sample], others: Sequence[Sample]) -> int:
    """How many questions both hold, by words and image: parts of a benchmark may number theirs alike, or renumber them.

    Raises DataError where an image cannot be read.
    """
    words = {_words(sample) for sample in samples} & {_words(sample) for sample in others}
    return len(_questions(samples, words) & _questions(others, words))


def _questions(samples: Sequence[Sample], words: Container[tuple[str, ...]]) -> set[tuple[tuple[str, ...], str | None]]:
    """The samples of these words with the sha256 of their images, which are read."""
    return {
        (_words(sample), None if sample.image is None else sample.image.sha256())
        for sample in samples
        if _words(sample) in words
    }


def _words(sample: Sample) -> tuple[str, ...]:
    return tuple(turn.question for turn in sample.turns)


def _reference(folder: Path, benchmark: Benchmark) -> Mapping[str, Mapping[str, Any]]:
    try:
        lines: Sequence[str] = (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise DataError(f"{folder} holds no {PREDICTIONS}: run `betakd-pipe evaluate TEACHER` into it first") from None
    reference = {item["sample_id"]: item for item in map(json.loads, lines)}
    missing = [sample.sample_id for sample in benchmark.samples if sample.sample_id not in reference]
    if missing:
        raise DataError(f"the reference lacks {missing[0]!r}: evaluate the teacher on the same benchmark")
    return reference


def _finished_scores(out: Path, subject: Mapping[str, Any]) -> dict[str, Any] | None:
    if not (out / SCORES).is_file():
        return None
    scores: dict[str, Any] = json.loads((out / SCORES).read_text(encoding="utf-8"))
    require_same(out, scores, subject)
    return scores

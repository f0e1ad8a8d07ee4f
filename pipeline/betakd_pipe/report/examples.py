"""Probed samples as cards: what the student's entropy and the weight of one sample did over the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from betakd_pipe.report.comparisons import ranking
from betakd_pipe.report.records import Run, Runs
from betakd_pipe.report.samples import data_uri
from betakd_pipe.report.scatter import scatters
from betakd_stages.errors import DataError

NUM_EACH = 3
"""Cards with the smallest, and with the largest weights."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training sample; the image as a data URI, none where it has none or is gone. A line per moment: step,
    student's entropy, teacher's entropy, weight."""

    sample_id: str
    question: str
    label: str
    image: str | None
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """Samples of the best method that gives each its own weight, those with the smallest final weight first."""

    method: str
    channel: str
    samples: tuple[Example, ...]
    problem: str
    """Why the samples themselves are not shown, where they are gone."""


def weight_examples(runs: Runs) -> Examples | None:
    """The examples, of the first seed; None where no method was probed that has a weight for each sample."""
    for method in ranking(runs):
        if scatters({method: runs[method]}):
            run = runs[method][0]
            channel = next(each for each in run.channels if f"beta/{each}" in run.probe[-1]["samples"])
            samples = run.probe[-1]["samples"]
            chosen = _chosen(samples[f"beta/{channel}"])
            shown, problem = _training_samples(run, [samples["sample_id"][place] for place in chosen])
            return Examples(method, channel, tuple(_example(run, channel, place, shown) for place in chosen), problem)
    return None


def _chosen(betas: Sequence[float | None]) -> list[int]:
    """The places of the samples with the smallest and the largest weights, in the order of their weights."""
    order = [int(place) for place in np.argsort(np.array(betas, dtype=np.float64), kind="stable")]
    known = [place for place in order if betas[place] is not None]
    return known if len(known) <= 2 * NUM_EACH else [*known[:NUM_EACH], *known[-NUM_EACH:]]


@dataclass(frozen=True, slots=True)
class _Shown:
    question: str
    label: str
    image: str | None


def _training_samples(run: Run, wanted: Sequence[str]) -> tuple[Mapping[str, _Shown], str]:
    """What to show of these samples, by id; nothing, and why, where the data cannot be read any more."""
    from betakd_stages.data import load_samples  # imports Pillow

    shown = {}
    try:
        for sample in load_samples(run.settings["data"]):
            if sample.sample_id in wanted:
                image = data_uri(sample.image.load().pixels) if sample.image else None
                shown[sample.sample_id] = _Shown(sample.turns[0].question, sample.turns[0].answer, image)
            if len(shown) == len(wanted):
                break
    except DataError as error:
        return {}, f"Only their ids are shown: {error}"
    return shown, ""


def _example(run: Run, channel: str, place: int, shown: Mapping[str, _Shown]) -> Example:
    sample_id = run.probe[-1]["samples"]["sample_id"][place]
    known = shown.get(sample_id, _Shown(sample_id, "", None))
    names = ("student_entropy", "teacher_entropy", f"beta/{channel}")
    lines = tuple((str(row["step"]), *(_number(row["samples"][name][place]) for name in names)) for row in run.probe)
    return Example(sample_id, known.question, known.label, known.image, lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"

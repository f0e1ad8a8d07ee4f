"""What a benchmark is: the samples that are asked, how files of predictions name them, and the rule of the grades."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from betakd_stages.data.conversation import PLACEHOLDER
from betakd_stages.data.sample import ImageReference, Sample, SampleSet, Turn
from betakd_stages.evaluation.bootstrap import Tally

PHRASE_SUFFIX = "Answer the question using a single word or phrase."
LETTER_SUFFIX = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model said; `prompt`: what its file says it was asked; `confidence`: its probability, if known."""

    text: str
    prompt: str = ""
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Grades:
    """What a rule makes of predictions.

    For every sample in order `correct`, 0 to 1, and what was understood, `parsed`; the official numbers; and for the
    most telling of them, by the same name, what each unit adds to it.
    """

    correct: Sequence[float]
    parsed: Sequence[str]
    official: Mapping[str, Any]
    tallies: Mapping[str, Tally]


def question_id(row: Mapping[str, Any]) -> Hashable:
    """What most benchmarks tell questions apart by. Raises KeyError where the row has none."""
    return str(row["question_id"])


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Samples with the label as their answer, and the official rule.

    `rows` holds for every sample what official files of predictions say of it (question_id, prompt, ...); samples and
    the rows of such files are told apart by `key`. `grade` is given one prediction per sample, None where a file has
    none, which only happens where `missing` is "wrong". `reads_prompts`: key or rule need what the files say was asked.
    `asked` says how it is asked, where there are several ways.
    """

    name: str
    samples: SampleSet
    rows: Sequence[Mapping[str, Any]]
    grade: Callable[[Sequence[Prediction | None]], Grades]
    key: Callable[[Mapping[str, Any]], Hashable] = question_id
    missing: Literal["wrong", "refused"] = "refused"
    reads_prompts: bool = False
    max_new_tokens: int = 128
    asked: Mapping[str, Any] = field(default_factory=dict)


def asked_sample(sample_id: str, image: ImageReference | None, question: str, label: str, category: str) -> Sample:
    """A sample of one question."""
    return Sample(sample_id, image, (Turn(question, label),), category)


def official_prompt(sample: Sample) -> str:
    """The question with the image's mark before it, as files of predictions of the LLaVA line have it."""
    mark = f"{PLACEHOLDER}\n" if sample.image is not None else ""
    return mark + sample.turns[0].question


def texts_of(predictions: Sequence[Prediction | None]) -> list[str]:
    """The texts, of a benchmark that refuses missing predictions."""
    assert None not in predictions
    return [prediction.text for prediction in predictions if prediction is not None]


def percent_tally(values: Sequence[float], weights: Sequence[float] | None = None) -> Tally:
    """The tally of 100 times the mean of `values` [N]; `weights` of 0 leave values out."""
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones(len(value)) if weights is None else np.asarray(weights, dtype=np.float64)
    additions = np.stack([value * weight, weight], axis=1)[weight > 0]
    return Tally(additions, np.zeros(len(additions), dtype=np.int64), lambda sums: sums[:, 0] / sums[:, 1] * 100)

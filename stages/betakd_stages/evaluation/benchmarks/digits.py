"""The handwritten digits of the demo: an answer is right where it is the label word for word."""

from collections.abc import Sequence
from functools import partial

from betakd_stages.data.digits import load_digits_samples
from betakd_stages.data.specification import DataSpecification
from betakd_stages.evaluation.benchmarks.base import (
    Benchmark,
    Grades,
    Prediction,
    official_prompt,
    percent_tally,
    texts_of,
)
from betakd_stages.evaluation.metrics import exact_match


def load(specification: DataSpecification) -> Benchmark:
    """The benchmark `digits[:SPLIT]`; the options are those of the data source."""
    samples = load_digits_samples(DataSpecification("digits", specification.argument or "test", specification.options))
    rows = [{"question_id": sample.sample_id, "prompt": official_prompt(sample)} for sample in samples]
    labels = [sample.turns[0].answer for sample in samples]
    return Benchmark("digits", samples, rows, partial(grade, labels), max_new_tokens=16)


def grade(labels: Sequence[str], predictions: Sequence[Prediction | None]) -> Grades:
    """The share of answers that are the label, spaces aside."""
    texts = texts_of(predictions)
    correct = [exact_match(text, label) for text, label in zip(texts, labels, strict=True)]
    tally = percent_tally(correct)
    return Grades(correct, texts, {"accuracy": tally.value()}, {"accuracy": tally})

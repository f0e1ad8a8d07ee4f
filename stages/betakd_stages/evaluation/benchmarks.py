"""Benchmarks: which samples are asked, and when an answer is right."""

from collections.abc import Callable
from dataclasses import dataclass

from betakd_stages.data import load_samples
from betakd_stages.data.sample import SampleSet
from betakd_stages.data.specification import DataSpecification, parse_specification
from betakd_stages.errors import DataError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Samples, and the rule that compares an answer with the label."""

    name: str
    samples: SampleSet
    is_correct: Callable[[str, str], bool]


def exact_match(answer: str, label: str) -> bool:
    """Whether answer and label are the same words."""
    return answer.split() == label.split()


def _digits(specification: DataSpecification) -> Benchmark:
    split = DataSpecification("digits", specification.argument or "test", specification.options)
    return Benchmark("digits", load_samples(split.canonical()), exact_match)


BENCHMARKS: dict[str, Callable[[DataSpecification], Benchmark]] = {"digits": _digits}


def load_benchmark(specification: str) -> Benchmark:
    """The benchmark that `NAME[:SPLIT][?key=value&...]` names. Raises DataError for an unknown one."""
    parsed = parse_specification(specification)
    if parsed.name not in BENCHMARKS:
        raise DataError(f"benchmark {parsed.name!r} is unknown: use one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[parsed.name](parsed)

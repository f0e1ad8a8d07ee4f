"""Benchmarks by their official rules: which samples are asked, and what an answer counts. One file per benchmark."""

from collections.abc import Callable

from betakd_stages.data.specification import DataSpecification, parse_specification
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks import digits, gqa, mmbench, mme, pope, scienceqa, textvqa
from betakd_stages.evaluation.benchmarks.base import Benchmark

BENCHMARKS: dict[str, Callable[[DataSpecification], Benchmark]] = {
    "digits": digits.load,
    "gqa": gqa.load,
    "mmbench": mmbench.load,
    "mme": mme.load,
    "pope": pope.load,
    "scienceqa": scienceqa.load,
    "textvqa": textvqa.load,
}


def load_benchmark(text: str) -> Benchmark:
    """The benchmark that `NAME=PATH[?key=value&...]` or `digits[:SPLIT]` names. Raises DataError for an unknown one."""
    name, equals, rest = text.partition("=")
    is_path = equals and not set(":?") & set(name)
    specification = parse_specification(f"{name}:{rest}" if is_path else text)
    if specification.name not in BENCHMARKS:
        raise DataError(f"benchmark {specification.name!r} is unknown: use one of {', '.join(BENCHMARKS)}")
    if specification.name != "digits" and not specification.argument:
        raise DataError(f"benchmark {text!r} names no files: expected {specification.name}=PATH")
    return BENCHMARKS[specification.name](specification)

"""Samples: where they come from and what they are. A data specification is `NAME:ARGUMENT[?key=value&key=value]`."""

from collections.abc import Callable

from betakd_stages.data.columns import load_image_folder, load_table
from betakd_stages.data.digits import load_digits_samples
from betakd_stages.data.llava import load_llava
from betakd_stages.data.messages import load_messages
from betakd_stages.data.mixture import load_mixture
from betakd_stages.data.sample import SampleSet
from betakd_stages.data.scienceqa import load_scienceqa
from betakd_stages.data.specification import DataSpecification, parse_specification
from betakd_stages.errors import DataError

SOURCES: dict[str, Callable[[DataSpecification], SampleSet]] = {
    "digits": load_digits_samples,
    "imagefolder": load_image_folder,
    "llava": load_llava,
    "messages": load_messages,
    "mixture": lambda specification: load_mixture(specification, load_samples),
    "scienceqa": load_scienceqa,
    "table": load_table,
}


def load_samples(specification: str) -> SampleSet:
    """The samples that a specification such as `digits:transfer?label_noise=0.3` names.

    Raises DataError for an unknown source, split or option.
    """
    parsed = parse_specification(specification)
    if parsed.name not in SOURCES:
        raise DataError(
            f"data source {parsed.name!r} in {specification!r} is unknown: use one of {', '.join(sorted(SOURCES))}, "
            "as NAME:ARGUMENT[?key=value&...]"
        )
    return SOURCES[parsed.name](parsed)

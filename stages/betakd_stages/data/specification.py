"""Data specifications: one string that names a source, an argument (a split or a file) and options.

digits:transfer?label_noise=0.3&noisy_types=which+even&seed=1
llava:train.json?images=photos
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from betakd_stages.errors import DataError


@dataclass(frozen=True, slots=True)
class DataSpecification:
    """A parsed specification; `options` holds the text of every option."""

    name: str
    argument: str
    options: Mapping[str, str]

    def canonical(self) -> str:
        """The specification with its options in alphabetical order: equal texts name equal samples."""
        query = "&".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.name}:{self.argument}" + (f"?{query}" if query else "")

    def typed_options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The options, converted to the types of `defaults` (int, float, str, tuple of str separated by `+`).

        Raises DataError for an option that `defaults` does not have or a value of another type.
        """
        unknown = sorted(set(self.options) - set(defaults))
        if unknown:
            raise DataError(
                f"option {unknown[0]!r} in {self.canonical()!r} is unknown: {self.name} takes "
                + (", ".join(defaults) or "no options")
            )
        return {**defaults, **{key: self._convert(key, defaults[key]) for key in self.options}}

    def _convert(self, key: str, default: Any) -> Any:
        text = self.options[key]
        if isinstance(default, tuple):
            return tuple(text.split("+"))
        try:
            return type(default)(text)
        except ValueError:
            raise DataError(
                f"option {key}={text!r} in {self.canonical()!r} is not a {type(default).__name__}"
            ) from None


def parse_specification(text: str) -> DataSpecification:
    """The parts of `NAME[:ARGUMENT][?key=value&...]`. Raises DataError where the form is wrong."""
    head, _, query = text.partition("?")
    name, _, argument = head.partition(":")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or key in options:
            raise DataError(f"{pair!r} in the data specification {text!r} must be key=value, each key once")
        options[key] = value
    if not name:
        raise DataError(f"the data specification {text!r} names no source: expected NAME:ARGUMENT[?key=value&...]")
    return DataSpecification(name, argument, options)

"""Which entries of a token's distribution a cache keeps: the rule every record of the cache obeys."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from betakd_cache.errors import CacheError

MAX_COMPACT_ENTRIES = 255  # the number of entries of a token is stored in one byte


@dataclass(frozen=True, slots=True)
class TokenRule:
    """The most likely ids of a token up to `top_p`, at most `top_k`, the gold id always among them.

    `top_k` counts the gold id; `top_p` is the cumulative probability to reach at `top_p_temperature` (1 keeps a fixed
    number of entries). `temperatures` is the ascending grid at which the logsumexp and the mean energy of what is not
    kept are stored. `exact` stores every number in full precision and allows any `top_k`.

    Raises CacheError for values outside these ranges.
    """

    top_k: int = 64
    top_p: float = 0.999
    top_p_temperature: float = 1.0
    temperatures: tuple[float, ...] = (1.0, 2.0)
    exact: bool = False

    def __post_init__(self) -> None:
        if self.top_k < 1 or (not self.exact and self.top_k > MAX_COMPACT_ENTRIES):
            raise CacheError(
                f"top_k is {self.top_k}; it must lie in 1..{MAX_COMPACT_ENTRIES}, or be any count with exact storage"
            )
        if not 0 < self.top_p <= 1:
            raise CacheError(f"top_p is {self.top_p}; give a probability above 0 and at most 1")
        positive = all(0 < value < math.inf for value in (self.top_p_temperature, *self.temperatures))
        ascending = list(self.temperatures) == sorted(set(self.temperatures))
        if not (self.temperatures and positive and ascending):
            raise CacheError(
                f"temperatures are {self.temperatures} and top_p_temperature is {self.top_p_temperature}; "
                "give at least one temperature, all positive and in ascending order"
            )

    def to_json(self) -> dict[str, Any]:
        """The rule as plain JSON values."""
        return asdict(self) | {"temperatures": list(self.temperatures)}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "TokenRule":
        """The rule that `to_json` described."""
        return TokenRule(**{**fields, "temperatures": tuple(fields["temperatures"])})

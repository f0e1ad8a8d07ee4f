"""The arrays of a shard: their names, number types and shapes, all of which follow from the rules of the cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from betakd_cache.errors import CacheError
from betakd_cache.token_rule import TokenRule

FORMAT_NAME = "betakd-cache"
FORMAT_VERSION = 1
WIDE_VOCABULARY = 65_536  # above it an id takes a second plane of one byte
MAX_VOCABULARY = 2**24
NUM_EXACT_RANKS = 3  # ranks 2, 3 and 4; the first rank is 0 by definition
SAMPLE_COLUMNS = ("sample_id", "num_tokens", "gold_nll", "entropy", "kept_mass")
RESERVED_COLUMNS = SAMPLE_COLUMNS

Axis = Literal["boundary", "sample", "token", "entry"]


@dataclass(frozen=True, slots=True)
class CacheRules:
    """What fixes the arrays of a cache; bound by the manifest beside the identity."""

    token_rule: TokenRule
    vocabulary_size: int
    feature_sizes: Mapping[str, int] = field(default_factory=dict)
    logit_moments: bool = True

    def __post_init__(self) -> None:
        if not 1 < self.vocabulary_size <= MAX_VOCABULARY:
            raise CacheError(f"vocabulary_size is {self.vocabulary_size}; it must lie in 2..{MAX_VOCABULARY}")
        for name, size in self.feature_sizes.items():
            if not name.isidentifier() or size < 1:
                raise CacheError(
                    f"feature {name!r} of size {size} cannot be stored; give it a plain name and a size of at least 1"
                )


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a shard, along its boundaries `[S + 1]`, samples `[S]`, tokens `[T]` or entries `[E]`."""

    name: str
    code: str
    """NumPy's code of the number type."""
    axis: Axis
    width: int | None = None
    """Columns of a matrix; None for a vector."""

    @property
    def dtype(self) -> np.dtype:
        """The number type."""
        return np.dtype(self.code)

    @property
    def row_bytes(self) -> int:
        """The size of one row."""
        return self.dtype.itemsize * (self.width or 1)

    def shape(self, num_samples: int, num_tokens: int, num_entries: int) -> tuple[int, ...]:
        """The shape in a shard of these counts."""
        rows = {"boundary": num_samples + 1, "sample": num_samples, "token": num_tokens, "entry": num_entries}
        return (rows[self.axis],) if self.width is None else (rows[self.axis], self.width)


def array_specs(rules: CacheRules) -> tuple[ArraySpec, ...]:
    """Every array of a shard, little-endian, in the order of docs/cache-format.md."""
    exact = rules.token_rule.exact
    wide = rules.vocabulary_size > WIDE_VOCABULARY
    num_temperatures = len(rules.token_rule.temperatures)
    brief = "<f4" if exact else "<f2"
    arrays = [
        ArraySpec("sample_ptr", "<u4", "boundary"),
        ArraySpec("entry_ptr", "<u8", "boundary"),
        ArraySpec("token_ids", "<u2", "token"),
        *([ArraySpec("token_ids_high", "|u1", "token")] if wide else []),
        ArraySpec("tok_n", "<u4" if exact else "|u1", "token"),
        ArraySpec("ids", "<u2", "entry"),
        *([ArraySpec("ids_high", "|u1", "entry")] if wide else []),
        ArraySpec("gap", "<f4" if exact else "|u1", "entry"),
        *([] if exact else [ArraySpec("gap_top", "<u2", "token", NUM_EXACT_RANKS)]),
        ArraySpec("gold_gap", brief, "token"),
        ArraySpec("tail_lse", "<f4", "token", num_temperatures),
        ArraySpec("tail_energy", brief, "token", num_temperatures),
    ]
    if rules.logit_moments:
        arrays += [
            ArraySpec("logit_max", "<f4", "token"),
            ArraySpec("logit_mean", "<f4", "token"),
            ArraySpec("logit_std", brief, "token"),
        ]
    for name, size in rules.feature_sizes.items():
        arrays += [ArraySpec(f"features/{name}", brief, "sample", size), ArraySpec(f"present/{name}", "|u1", "sample")]
    return tuple(arrays)


def statistics_of(rules: CacheRules) -> tuple[str, ...]:
    """The names of the statistics a cache of these rules holds; an energy that needs another is refused by name."""
    moments = ("logit_max", "logit_mean", "logit_std") if rules.logit_moments else ()
    features = tuple(f"features/{name}" for name in rules.feature_sizes)
    return ("entries", "gold_gap", "tail_lse", "tail_energy", *moments, *features)

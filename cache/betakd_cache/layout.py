"""The arrays of a shard: their names, number types and shapes, all of which follow from the rules of the cache."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from betakd_cache.codec import GROUP_SIZE, NUM_WIDE_RANKS
from betakd_cache.errors import CacheError
from betakd_cache.token_rule import TokenRule

FORMAT_NAME = "betakd-cache"
FORMAT_VERSION = 1
WIDE_VOCABULARY = 65_536  # above it an id takes a second plane of one byte
MAX_VOCABULARY = 2**24
SAMPLE_COLUMNS = ("sample_id", "num_tokens", "gold_nll", "entropy", "kept_mass")
RESERVED_COLUMNS = SAMPLE_COLUMNS
MAX_PLACES = 2**16  # a place in focus is stored in two bytes
POOLED = "pooled"
MAX_SHARD_FEATURE_NUMBERS = 2**28  # 1 GiB of float32 while the records of a shard are collected

Axis = Literal["boundary", "sample", "token", "entry"]
FeatureDtype = Literal["float16", "int8"]


@dataclass(frozen=True, slots=True)
class FeatureLayout:
    """At how many places of a sample a feature has a vector: one ("pooled"), or P of them.

    `name` says how the places were chosen ("grid:4x4", "tokens"); this package compares it and reads nothing into it.
    """

    name: str = POOLED
    num_places: int = 1
    """P; 1 if pooled."""
    num_focus: int = 0
    """J, how many of the places the teacher attends to most are listed for every sample."""

    @property
    def is_pooled(self) -> bool:
        """Whether the feature is one vector `[D]` of a sample, and not `[P, D]`."""
        return self.name == POOLED

    def shape(self, size: int) -> tuple[int, ...]:
        """`[D]` or `[P, D]`."""
        return (size,) if self.is_pooled else (self.num_places, size)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"layout": self.name, "num_places": self.num_places, "num_focus": self.num_focus}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "FeatureLayout":
        """The layout that `to_json` described."""
        return FeatureLayout(fields["layout"], fields["num_places"], fields["num_focus"])


@dataclass(frozen=True, slots=True)
class CacheRules:
    """What fixes the arrays of a cache; bound by the manifest beside the identity."""

    token_rule: TokenRule
    vocabulary_size: int
    feature_sizes: Mapping[str, int] = field(default_factory=dict)
    """D by name."""
    logit_moments: bool = True
    feature_layouts: Mapping[str, FeatureLayout] = field(default_factory=dict)
    """Of the features that are not pooled, by name."""
    feature_dtype: FeatureDtype = "float16"
    """How features are stored unless the token rule is exact; int8 has one scale per 64 numbers."""
    tail_energies: bool = True
    """Whether the mean energy of the tail is stored; a teacher known by its log probabilities cannot give it."""

    def __post_init__(self) -> None:
        if not 1 < self.vocabulary_size <= MAX_VOCABULARY:
            raise CacheError(f"vocabulary_size is {self.vocabulary_size}; it must lie in 2..{MAX_VOCABULARY}")
        for name, size in self.feature_sizes.items():
            if not name.isidentifier() or size < 1:
                raise CacheError(
                    f"feature {name!r} of size {size} cannot be stored; give it a plain name and a size of at least 1"
                )
        for name, layout in self.feature_layouts.items():
            fits = 1 <= layout.num_places <= MAX_PLACES and 0 <= layout.num_focus <= layout.num_places
            if name not in self.feature_sizes or layout.is_pooled or not fits:
                raise CacheError(
                    f"layout {layout.name!r} of feature {name!r} with {layout.num_places} places, {layout.num_focus} "
                    f"in focus, cannot be stored; give 1 to {MAX_PLACES} places of a feature of the cache, no more in "
                    "focus than there are, and no layout to a pooled feature"
                )
        if self.feature_dtype not in FEATURE_DTYPES or (self.token_rule.exact and self.feature_dtype != "float16"):
            raise CacheError(
                f"feature_dtype is {self.feature_dtype!r}; choose from {', '.join(FEATURE_DTYPES)}, and leave it out "
                "of an exact cache, which stores float32"
            )
        if not self.tail_energies and len(self.token_rule.temperatures) > 1:
            raise CacheError(
                f"temperatures are {self.token_rule.temperatures} without tail energies; give one temperature, there "
                "is no way from one to another without them"
            )

    def layout(self, name: str) -> FeatureLayout:
        """The layout of a feature."""
        return self.feature_layouts.get(name, FeatureLayout())

    def feature_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a feature of one sample, `[D]` or `[P, D]`."""
        return self.layout(name).shape(self.feature_sizes[name])

    @property
    def max_shard_samples(self) -> int:
        """The most samples of a shard, so that their features fit into memory while they are collected."""
        numbers = sum(math.prod(self.feature_shape(name)) for name in self.feature_sizes)
        return max(1, MAX_SHARD_FEATURE_NUMBERS // max(numbers, 1))


FEATURE_DTYPES = {"float16": "<f2", "int8": "|i1"}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a shard, along its boundaries `[S + 1]`, samples `[S]`, tokens `[T]` or entries `[E]`."""

    name: str
    code: str
    """NumPy's code of the number type."""
    axis: Axis
    row_shape: tuple[int, ...] = ()
    """The shape of one row: `[]` of a vector, `[columns]` of a matrix, `[P, D]` of a feature at P places."""

    @property
    def dtype(self) -> np.dtype:
        """The number type."""
        return np.dtype(self.code)

    @property
    def row_bytes(self) -> int:
        """The size of one row."""
        return self.dtype.itemsize * math.prod(self.row_shape)

    def shape(self, num_samples: int, num_tokens: int, num_entries: int) -> tuple[int, ...]:
        """The shape in a shard of these counts."""
        rows = {"boundary": num_samples + 1, "sample": num_samples, "token": num_tokens, "entry": num_entries}
        return (rows[self.axis], *self.row_shape)


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
        *([] if exact else [ArraySpec("gap_top", "|u1", "token", (NUM_WIDE_RANKS,))]),
        ArraySpec("gold_gap", brief, "token"),
        ArraySpec("tail_lse", "<f4", "token", (num_temperatures,)),
        *([ArraySpec("tail_energy", brief, "token", (num_temperatures,))] if rules.tail_energies else []),
    ]
    if rules.logit_moments:
        arrays += [
            ArraySpec("logit_max", "<f4", "token"),
            ArraySpec("logit_mean", "<f4", "token"),
            ArraySpec("logit_std", brief, "token"),
        ]
    return (*arrays, *(spec for name in rules.feature_sizes for spec in _feature_specs(rules, name)))


def focus_name(feature: str) -> str:
    """The array that holds the places of a feature which the teacher attends to most."""
    return f"{feature}_focus"


def _feature_specs(rules: CacheRules, name: str) -> list[ArraySpec]:
    code = "<f4" if rules.token_rule.exact else FEATURE_DTYPES[rules.feature_dtype]
    shape, num_focus = rules.feature_shape(name), rules.layout(name).num_focus
    num_groups = math.ceil(shape[-1] / GROUP_SIZE)
    return [
        ArraySpec(f"features/{name}", code, "sample", shape),
        *([ArraySpec(f"scales/{name}", "<f2", "sample", (*shape[:-1], num_groups))] if code == "|i1" else []),
        ArraySpec(f"present/{name}", "|u1", "sample"),
        *([ArraySpec(focus_name(name), "<u2", "sample", (num_focus,))] if num_focus else []),
    ]


def statistics_of(rules: CacheRules) -> tuple[str, ...]:
    """The names of the statistics a cache of these rules holds; an energy that needs another is refused by name."""
    energies = ("tail_energy",) if rules.tail_energies else ()
    moments = ("logit_max", "logit_mean", "logit_std") if rules.logit_moments else ()
    features = tuple(f"features/{name}" for name in rules.feature_sizes)
    focus = tuple(focus_name(name) for name in rules.feature_sizes if rules.layout(name).num_focus)
    return ("entries", "gold_gap", "tail_lse", *energies, *moments, *features, *focus)

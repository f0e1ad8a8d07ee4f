"""What a teacher said about one sample, and the checks it must pass to enter a cache."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from betakd_cache.errors import CacheError
from betakd_cache.layout import RESERVED_COLUMNS, CacheRules

RowValue = str | int | float | None
MOMENTS = ("logit_max", "logit_mean", "logit_std")
FLOAT16_MAX = 65504.0
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class TeacherRecord:
    """The teacher's numbers at the T supervised tokens of one sample, E entries in all, M temperatures.

    A gap is the largest logit of the token minus the entry's logit, so never negative.
    `tail_energy` and the moments are None where the teacher cannot give them; a cache holds them for all its samples or
    for none.
    """

    sample_id: str
    token_ids: NDArray[np.int64]
    """[T] supervised answer tokens, the gold ids."""
    entry_counts: NDArray[np.int64]
    """[T] entries kept per token; the gold id is always one of them."""
    ids: NDArray[np.int64]
    """[E] kept ids, per token in order of ascending gap."""
    gaps: NDArray[np.float32]
    """[E] nats."""
    gold_gap: NDArray[np.float32]
    """[T] nats."""
    tail_lse: NDArray[np.float32]
    """[T, M] log of the sum over the ids not kept of exp(-gap / temperature); -inf where everything is kept."""
    tail_energy: NDArray[np.float32] | None
    """[T, M] mean gap of the ids not kept under softmax(logits / temperature); 0 where everything is kept."""
    logit_max: NDArray[np.float32] | None = None
    """[T] the largest logit itself."""
    logit_mean: NDArray[np.float32] | None = None
    """[T] mean logit over the vocabulary."""
    logit_std: NDArray[np.float32] | None = None
    """[T] population deviation of the logits over the vocabulary."""
    features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """name -> [D], or [P, D] at P places; a name is absent where the sample has none (no image, no "vision")."""
    focus: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """name -> [J] the places of that feature which the teacher attends to most, first the most, where a cache lists
    them."""
    row: Mapping[str, RowValue] = field(default_factory=dict)
    """Further columns of the sample's Parquet row."""


def check_records(records: Sequence[TeacherRecord], rules: CacheRules) -> None:
    """Nothing; raises CacheError naming the first sample and field that a cache of these rules cannot hold.

    The records are checked together, and one by one only to name the culprit: that is several times as fast.
    """
    if _problem(records, rules):
        for record in records:
            if problem := _problem([record], rules):
                raise CacheError(f"sample {record.sample_id!r}: {problem}; correct the teacher or reject the sample")
    for record in records:
        for name, value in record.row.items():
            is_plain = value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
            if name in RESERVED_COLUMNS or not is_plain:
                raise CacheError(
                    f"sample {record.sample_id!r}: row column {name!r} holds {value!r}; give text, a number or None "
                    f"under a name other than {', '.join(RESERVED_COLUMNS)}"
                )


def joined(records: Sequence[TeacherRecord], name: str, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """A field of several records, one after another, in its own number type or cast to `dtype` on the way."""
    return np.concatenate(_fields(records, name), dtype=dtype, casting="unsafe")


def _fields(records: Sequence[TeacherRecord], name: str) -> list[Any]:
    return list(map(operator.attrgetter(name), records))


def _problem(records: Sequence[TeacherRecord], rules: CacheRules) -> str | None:
    for find in (_token_problem, _entry_problem, _number_problem, _feature_problem, _focus_problem):
        if problem := find(records, rules):
            return problem
    return None


def _token_problem(records: Sequence[TeacherRecord], rules: CacheRules) -> str | None:
    """What is wrong with the shapes of the fields that have a row per token."""
    num_tokens = [len(record.token_ids) for record in records]
    if min(num_tokens) == 0:
        return "it has no supervised token, at least one is needed"
    grid = (len(rules.token_rule.temperatures),)
    row_shapes: dict[str, tuple[int, ...]] = {"entry_counts": (), "gold_gap": (), "tail_lse": grid}
    optional = [("tail_energy", "tail_energies", grid), *((name, "logit_moments", ()) for name in MOMENTS)]
    for name, rule, row_shape in optional:
        wanted = getattr(rules, rule)
        if wanted in [array is None for array in _fields(records, name)]:
            return f"{name} is {'missing' if wanted else 'given'}, but the cache was opened with {rule}={wanted}"
        if wanted:
            row_shapes[name] = row_shape
    for name, row_shape in row_shapes.items():
        if problem := _shape_problem(records, name, [(tokens, *row_shape) for tokens in num_tokens]):
            return problem
    return None


def _shape_problem(records: Sequence[TeacherRecord], name: str, expected: Sequence[tuple[int, ...]]) -> str | None:
    for array, shape in zip(_fields(records, name), expected, strict=True):
        if array.shape != shape:
            return f"{name} has shape {list(array.shape)}, expected {list(shape)}"
    return None


def _entry_problem(records: Sequence[TeacherRecord], rules: CacheRules) -> str | None:
    counts, size = joined(records, "entry_counts"), rules.vocabulary_size
    stops = np.cumsum(counts)
    starts = stops - counts
    num_entries = np.diff(stops[np.cumsum([len(record.token_ids) for record in records]) - 1], prepend=0).tolist()
    for name in ("ids", "gaps"):
        if problem := _shape_problem(records, name, [(entries,) for entries in num_entries]):
            return problem
    token_ids, all_ids, gaps = (joined(records, name) for name in ("token_ids", "ids", "gaps"))
    most = min(rules.token_rule.top_k, size)
    if counts.min() < 1 or counts.max() > most:
        return f"a token keeps {counts.min()} to {counts.max()} entries, expected 1 to {most}"
    for name, ids in (("token_ids", token_ids), ("ids", all_ids)):
        if not (ids.min() >= 0 and ids.max() < size):
            return f"{name} reach from {ids.min()} to {ids.max()}, expected 0 to {size - 1}"
    rises = gaps[1:] >= gaps[:-1]
    rises[stops[:-1] - 1] = True
    # Where a token's gaps rise from 0 or more to a finite number, all of them are such numbers, and none is a NaN.
    if not (gaps[starts].min() >= 0 and gaps[stops - 1].max() <= FLOAT32_MAX):
        return f"gaps reach from {gaps.min()} to {gaps.max()}, expected finite numbers of 0 or more"
    if not rises.all():
        return "gaps fall within a token or hold a NaN, expected ascending order"
    gold = np.flatnonzero(all_ids == np.repeat(token_ids, counts))
    if len(gold) != len(counts) or (gold < starts).any() or (gold >= stops).any():
        return f"the gold ids of {len(counts)} tokens are kept {len(gold)} times, expected once at each token"
    if (gaps[gold] != joined(records, "gold_gap")).any():
        return "gold_gap differs from the gap of the gold entry, expected the same number"
    return None


def _number_problem(records: Sequence[TeacherRecord], rules: CacheRules) -> str | None:
    largest = FLOAT32_MAX if rules.token_rule.exact else FLOAT16_MAX
    bounds = [("gold_gap", 0.0, largest)]
    if rules.tail_energies:
        bounds.append(("tail_energy", 0.0, largest))
    if rules.logit_moments:
        bounds += [
            ("logit_std", 0.0, largest),
            ("logit_max", -FLOAT32_MAX, FLOAT32_MAX),
            ("logit_mean", -FLOAT32_MAX, FLOAT32_MAX),
        ]
    for name, least, most in bounds:
        array = joined(records, name)
        if not (array.min() >= least and array.max() <= most):  # a NaN is neither
            return f"{name} reaches from {array.min()} to {array.max()}, expected finite numbers from {least} to {most}"
    largest_tail = joined(records, "tail_lse").max()
    if not largest_tail <= FLOAT32_MAX:
        return f"tail_lse reaches {largest_tail}, expected finite numbers or -inf"
    return None


def _feature_problem(records: Sequence[TeacherRecord], rules: CacheRules) -> str | None:
    largest = FLOAT32_MAX if rules.token_rule.exact else FLOAT16_MAX
    for name in rules.feature_sizes:
        features = [record.features[name] for record in records if name in record.features]
        expected = rules.feature_shape(name)
        others = {feature.shape for feature in features} - {expected}
        if others:
            return f"feature {name!r} has shape {list(min(others))}, expected {list(expected)}"
        if features and not np.abs(np.stack(features)).max() <= largest:  # a NaN is not smaller either
            return f"feature {name!r} holds a number that is not finite or beyond {largest}, expected finite numbers"
    unknown = {name for record in records for name in record.features} - set(rules.feature_sizes)
    if unknown:
        return f"feature {min(unknown)!r} is not one of the cache's: {', '.join(rules.feature_sizes) or 'none'}"
    return None


def _focus_problem(records: Sequence[TeacherRecord], rules: CacheRules) -> str | None:
    focused = {name for name, layout in rules.feature_layouts.items() if layout.num_focus}
    for record in records:
        expected = focused & record.features.keys()
        for name in expected ^ record.focus.keys():
            given = "given" if name in record.focus else "missing"
            listed = ", ".join(sorted(expected)) or "none"
            return f"the places in focus of feature {name!r} are {given}, expected those of {listed}"
        for name, places in record.focus.items():
            layout = rules.layout(name)
            inside = places.size == 0 or (places.min() >= 0 and places.max() < layout.num_places)
            if places.shape != (layout.num_focus,) or len(set(places.tolist())) < places.size or not inside:
                return (
                    f"the places in focus of feature {name!r} are {places.tolist()}, expected {layout.num_focus} "
                    f"different ones below {layout.num_places}"
                )
    return None

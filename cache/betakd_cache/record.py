"""What a teacher said about one sample, and the checks it must pass to enter a cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_cache.errors import CacheError
from betakd_cache.layout import RESERVED_COLUMNS, CacheRules

RowValue = str | int | float | None
FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True, eq=False)
class TeacherRecord:
    """The teacher's numbers at the T supervised tokens of one sample, E entries in all, M temperatures.

    A gap is the largest logit of the token minus the entry's logit, so never negative.
    The moments are None where the teacher cannot give them; a cache holds them for all its samples or for none.
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
    tail_energy: NDArray[np.float32]
    """[T, M] mean gap of the ids not kept under softmax(logits / temperature); 0 where everything is kept."""
    logit_max: NDArray[np.float32] | None = None
    """[T] the largest logit itself."""
    logit_mean: NDArray[np.float32] | None = None
    """[T] mean logit over the vocabulary."""
    logit_std: NDArray[np.float32] | None = None
    """[T] population deviation of the logits over the vocabulary."""
    features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """name -> [D] pooled features; a name is absent where the sample has none (no image, no "vision")."""
    row: Mapping[str, RowValue] = field(default_factory=dict)
    """Further columns of the sample's Parquet row."""


def check_record(record: TeacherRecord, rules: CacheRules) -> None:
    """Nothing; raises CacheError naming the sample and the first field that a cache of these rules cannot hold."""
    problem = (
        _shape_problem(record, rules)
        or _entry_problem(record, rules)
        or _number_problem(record, rules)
        or _feature_problem(record, rules)
    )
    if problem:
        raise CacheError(f"sample {record.sample_id!r}: {problem}; correct the teacher or reject the sample")
    for name, value in record.row.items():
        is_plain = value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
        if name in RESERVED_COLUMNS or not is_plain:
            raise CacheError(
                f"sample {record.sample_id!r}: row column {name!r} holds {value!r}; give text, a number or None under "
                f"a name other than {', '.join(RESERVED_COLUMNS)}"
            )


def _shape_problem(record: TeacherRecord, rules: CacheRules) -> str | None:
    num_tokens = len(record.token_ids)
    if num_tokens == 0:
        return "it has no supervised token, at least one is needed"
    num_entries = int(record.entry_counts.sum())
    grid = (num_tokens, len(rules.token_rule.temperatures))
    expected: list[tuple[str, Any, tuple[int, ...]]] = [
        ("entry_counts", record.entry_counts, (num_tokens,)),
        ("ids", record.ids, (num_entries,)),
        ("gaps", record.gaps, (num_entries,)),
        ("gold_gap", record.gold_gap, (num_tokens,)),
        ("tail_lse", record.tail_lse, grid),
        ("tail_energy", record.tail_energy, grid),
    ]
    for name in ("logit_max", "logit_mean", "logit_std"):
        moment = getattr(record, name)
        if (moment is not None) != rules.logit_moments:
            return (
                f"{name} is {'given' if moment is not None else 'missing'}, but the cache was opened with "
                f"logit_moments={rules.logit_moments}"
            )
        if moment is not None:
            expected.append((name, moment, (num_tokens,)))
    for name, array, shape in expected:
        if array.shape != shape:
            return f"{name} has shape {list(array.shape)}, expected {list(shape)}"
    return None


def _entry_problem(record: TeacherRecord, rules: CacheRules) -> str | None:
    counts, size = record.entry_counts, rules.vocabulary_size
    most = min(rules.token_rule.top_k, size)
    if counts.min() < 1 or counts.max() > most:
        return f"a token keeps {counts.min()} to {counts.max()} entries, expected 1 to {most}"
    for name, ids in (("token_ids", record.token_ids), ("ids", record.ids)):
        if ids.min() < 0 or ids.max() >= size:
            return f"{name} reach from {ids.min()} to {ids.max()}, expected 0 to {size - 1}"
    if not (np.isfinite(record.gaps).all() and record.gaps.min() >= 0):
        return f"gaps reach from {record.gaps.min()} to {record.gaps.max()}, expected finite numbers of 0 or more"
    starts = np.cumsum(counts)[:-1]
    rises = np.diff(record.gaps) >= 0
    rises[starts - 1] = True
    if not rises.all():
        return "gaps fall within a token, expected ascending order"
    gold = record.ids == np.repeat(record.token_ids, counts)
    per_token = np.add.reduceat(gold, np.concatenate(([0], starts)), dtype=np.int64)
    if not (per_token == 1).all():
        return f"the gold id is kept {per_token[per_token != 1][0]} times at a token, expected once"
    if not (record.gaps[gold] == record.gold_gap).all():
        return "gold_gap differs from the gap of the gold entry, expected the same number"
    return None


def _number_problem(record: TeacherRecord, rules: CacheRules) -> str | None:
    largest = np.inf if rules.token_rule.exact else FLOAT16_MAX
    half = [("gold_gap", record.gold_gap), ("tail_energy", record.tail_energy)]
    full = []
    if record.logit_max is not None and record.logit_mean is not None and record.logit_std is not None:
        half.append(("logit_std", record.logit_std))
        full = [("logit_max", record.logit_max), ("logit_mean", record.logit_mean)]
    for name, array in half:
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= largest):
            return f"{name} reaches from {array.min()} to {array.max()}, expected finite numbers in 0 to {largest}"
    for name, array in full:
        if not np.isfinite(array).all():
            return f"{name} reaches from {array.min()} to {array.max()}, expected finite numbers"
    if not (record.tail_lse < np.inf).all():  # a NaN is not smaller either
        return f"tail_lse reaches {record.tail_lse.max()}, expected finite numbers or -inf"
    return None


def _feature_problem(record: TeacherRecord, rules: CacheRules) -> str | None:
    largest = np.inf if rules.token_rule.exact else FLOAT16_MAX
    for name, feature in record.features.items():
        if name not in rules.feature_sizes:
            return f"feature {name!r} is not one of the cache's: {', '.join(rules.feature_sizes) or 'none'}"
        if feature.shape != (rules.feature_sizes[name],):
            return f"feature {name!r} has shape {list(feature.shape)}, expected [{rules.feature_sizes[name]}]"
        if not (np.isfinite(feature).all() and np.abs(feature).max() <= largest):
            return f"feature {name!r} holds a number that is not finite or beyond {largest}, expected finite numbers"
    return None

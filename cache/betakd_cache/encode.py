"""Records to the arrays and the Parquet rows of one shard."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from betakd_cache.codec import encode_gaps, encode_groups
from betakd_cache.errors import CacheError
from betakd_cache.layout import WIDE_VOCABULARY, CacheRules, array_specs, focus_name
from betakd_cache.record import MOMENTS, TeacherRecord, joined

BLOCK_TOKENS = 8192


def encode_shard(records: Sequence[TeacherRecord], rules: CacheRules) -> tuple[dict[str, NDArray[Any]], pa.Table]:
    """The arrays of a shard by name, exactly as `array_specs` lists them, and its rows, one per record.

    The records have passed `check_records`. A row holds the id, the token count, the teacher's means over the tokens,
    and the record's own columns. Raises CacheError where such a column mixes kinds of values.
    """
    token_ptr = np.cumsum([0, *(len(record.token_ids) for record in records)])
    # Block after block, so that what is computed stays in the processor's cache.
    bounds = np.unique(np.searchsorted(token_ptr[:-1], np.arange(0, token_ptr[-1] + BLOCK_TOKENS, BLOCK_TOKENS)))
    blocks = [_encode_block(records[start:stop], rules) for start, stop in itertools.pairwise(bounds.tolist())]
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    columns |= {"sample_ptr": token_ptr, "entry_ptr": np.cumsum([0, *columns.pop("num_entries")])}
    for name in rules.feature_sizes:
        columns |= _feature_arrays(records, name, rules)
    arrays = {spec.name: np.ascontiguousarray(columns.pop(spec.name), spec.dtype) for spec in array_specs(rules)}
    return arrays, _rows(records, {"num_tokens": np.diff(token_ptr), **columns})


def _encode_block(records: Sequence[TeacherRecord], rules: CacheRules) -> dict[str, NDArray[Any]]:
    """The arrays along tokens and entries of some records, their `num_entries` and the means of their rows `[S]`."""
    token_ptr = np.cumsum([0, *(len(record.token_ids) for record in records)])
    counts, gaps = joined(records, "entry_counts"), joined(records, "gaps")
    ids, token_ids = joined(records, "ids", np.int32), joined(records, "token_ids", np.int32)
    arrays: dict[str, NDArray[Any]] = {
        "token_ids": token_ids.astype(np.uint16),
        "tok_n": counts,
        "ids": ids.astype(np.uint16),
        "num_entries": np.add.reduceat(counts, token_ptr[:-1]),
    }
    if rules.vocabulary_size > WIDE_VOCABULARY:
        arrays |= {"token_ids_high": (token_ids >> 16).astype(np.uint8), "ids_high": (ids >> 16).astype(np.uint8)}
    if rules.token_rule.exact:
        arrays["gap"] = gaps
    else:
        arrays["gap"], arrays["gap_top"] = encode_gaps(gaps, counts)
    names = ["gold_gap", "tail_lse", *(["tail_energy"] if rules.tail_energies else [])]
    numbers = {name: joined(records, name) for name in names}
    if rules.logit_moments:
        arrays |= {name: joined(records, name) for name in MOMENTS}
    summaries = token_summaries(rules.token_rule.temperatures, counts, gaps, **numbers)
    return arrays | numbers | sample_means(summaries, token_ptr)


def _rows(records: Sequence[TeacherRecord], means: Mapping[str, NDArray[Any]]) -> pa.Table:
    columns: dict[str, Any] = {"sample_id": [record.sample_id for record in records], **means}
    for name in dict.fromkeys(name for record in records for name in record.row):
        try:
            columns[name] = pa.array([record.row.get(name) for record in records])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise CacheError(f"row column {name!r} mixes kinds of values ({error}); give it text or numbers") from error
    return pa.table(columns)


def token_summaries(
    temperatures: Sequence[float],
    counts: NDArray[np.int64],
    gaps: NDArray[np.float32],
    gold_gap: NDArray[np.float32],
    tail_lse: NDArray[np.float32],
    tail_energy: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """`gold_nll` and `entropy` in nats and `kept_mass`, a probability, per token `[T]`, of kept entries and tail.

    All are taken at the temperature of the grid that is nearest to 1. Without `tail_energy` the tail counts as one
    outcome, which makes `entropy` too small by at most the tail's mass times the log of its number of ids.
    """
    column = int(np.argmin(np.abs(np.log(temperatures))))
    temperature = temperatures[column]
    starts = np.cumsum(counts) - counts
    weights = np.exp(gaps * np.float32(-1 / temperature))
    kept = np.add.reduceat(weights, starts, dtype=np.float64)
    tail = np.exp(tail_lse[:, column].astype(np.float64))
    total = kept + tail
    if tail_energy is None:
        mean_energy = np.where(tail > 0, -temperature * tail_lse[:, column], 0.0)
    else:
        mean_energy = tail_energy[:, column]
    energy = np.add.reduceat(weights * gaps, starts, dtype=np.float64) + tail * mean_energy
    log_total = np.log(total)
    return {
        "gold_nll": gold_gap / temperature + log_total,
        "entropy": log_total + energy / total / temperature,
        "kept_mass": kept / total,
    }


def sample_means(
    summaries: Mapping[str, NDArray[np.float64]], token_ptr: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """The mean `[S]` of every summary over the tokens of each sample; no sample is without tokens."""
    return {name: np.add.reduceat(values, token_ptr[:-1]) / np.diff(token_ptr) for name, values in summaries.items()}


def _feature_arrays(records: Sequence[TeacherRecord], name: str, rules: CacheRules) -> dict[str, NDArray[Any]]:
    """The arrays of a feature in their stored precision, zeros where a record has none."""
    specs = {spec.name: spec for spec in array_specs(rules)}
    names = [f"features/{name}", f"scales/{name}", f"present/{name}", focus_name(name)]
    held = [spec for spec in map(specs.get, names) if spec is not None]
    arrays = {spec.name: np.zeros((len(records), *spec.row_shape), spec.dtype) for spec in held}
    for place, record in enumerate(records):
        if name not in record.features:
            continue
        feature: NDArray[Any] = record.features[name]
        if f"scales/{name}" in arrays:
            feature, arrays[f"scales/{name}"][place] = encode_groups(record.features[name])
        arrays[f"features/{name}"][place] = feature
        arrays[f"present/{name}"][place] = 1
        if focus_name(name) in arrays:
            arrays[focus_name(name)][place] = record.focus[name]
    return arrays

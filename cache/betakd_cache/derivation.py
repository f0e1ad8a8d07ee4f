"""A smaller cache from a larger one, without the teacher: fewer entries, fewer temperatures, a subset of the samples.

Kept numbers are copied as stored, bit for bit; what is dropped is added to the tail.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from betakd_cache.batch import CompactBatch
from betakd_cache.codec import NUM_WIDE_RANKS
from betakd_cache.encode import sample_means, token_summaries
from betakd_cache.errors import CacheError
from betakd_cache.layout import CacheRules, array_specs
from betakd_cache.reader import TeacherCache, open_cache
from betakd_cache.token_rule import TokenRule
from betakd_cache.writer import CacheWriter


@dataclass(frozen=True, slots=True)
class Derivation:
    """What `derive` wrote, against what it was made from."""

    path: str
    num_samples: int
    num_tokens: int
    num_entries: int
    source_samples: int
    source_entries: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def derive(
    source: Path | str,
    target: Path | str,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    temperatures: Sequence[float] | None = None,
    sample_ids: Collection[str] | None = None,
    overwrite: bool = False,
) -> Derivation:
    """A new cache at `target` with the settings given and the others of `source`; run again, it resumes.

    Raises CacheError for a setting that the source cannot give.
    """
    cache = open_cache(source)
    rule = _narrowed_rule(cache, top_k, top_p, temperatures)
    rules = dataclasses.replace(cache.manifest.rules, token_rule=rule)
    chosen = np.arange(len(cache)) if sample_ids is None else np.unique(cache.index_of(list(sample_ids)))
    with CacheWriter.open_with(target, cache.manifest.identity, rules, overwrite=overwrite) as writer:
        for batch, rows in _stored_shards(cache, chosen):
            if rows["sample_id"][0].as_py() not in writer.stored:
                narrowed = narrow(batch, cache.manifest.rules, rule)
                writer.append_shard(shard_arrays(narrowed, rules), _updated_rows(narrowed, rows, rule))
        writer.complete()
    counts, before = open_cache(target).manifest.counts, cache.manifest.counts
    return Derivation(
        str(target), counts.num_samples, counts.num_tokens, counts.num_entries, before.num_samples, before.num_entries
    )


def narrow(batch: CompactBatch, rules: CacheRules, rule: TokenRule) -> CompactBatch:
    """The batch under a narrower rule: fewer entries per token, the rest in the tail, fewer temperatures."""
    counts = batch.arrays["tok_n"].astype(np.int64)
    token = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(token)) - np.repeat(np.cumsum(counts) - counts, counts)
    gaps = batch.gaps().astype(np.float64)
    is_gold = batch.ids() == batch.token_ids()[token]
    most = np.minimum(_wanted_counts(batch, rules, rule, gaps), rule.top_k)
    gold_rank = np.bincount(token, weights=rank * is_gold, minlength=len(counts)).astype(np.int64)
    # A gold id beyond the cut takes a place of its own, the last one where the cap leaves no other.
    first = np.where((gold_rank >= most) & (most == rule.top_k), most - 1, most)
    kept = (rank < first[token]) | is_gold
    columns = [rules.token_rule.temperatures.index(temperature) for temperature in rule.temperatures]
    arrays = dict(batch.arrays.items())
    for name in ("ids", "ids_high", "gap"):
        if name in arrays:
            arrays[name] = arrays[name][kept]
    arrays["tok_n"] = np.bincount(token[kept], minlength=len(counts)).astype(arrays["tok_n"].dtype)
    arrays |= _widened_tail(batch, rule, columns, token, gaps, ~kept)
    if "gap_top" in arrays:
        # Codes of what stays are those of a prefix of the ranks, so they stay what they are; a gold entry that moves up
        # comes last, and takes its gap from `gold_gap`.
        has_rank = np.arange(1, NUM_WIDE_RANKS + 1) < arrays["tok_n"][:, None]
        arrays["gap_top"] = np.where(has_rank, arrays["gap_top"], 0)
    bounds = np.concatenate(([0], np.cumsum(kept)))
    return CompactBatch(arrays, batch.token_ptr, bounds[batch.entry_ptr])


def shard_arrays(batch: CompactBatch, rules: CacheRules) -> dict[str, NDArray[Any]]:
    """The arrays of a shard that holds exactly this batch."""
    arrays = {**batch.arrays, "sample_ptr": batch.token_ptr, "entry_ptr": batch.entry_ptr}
    return {spec.name: np.ascontiguousarray(arrays[spec.name], spec.dtype) for spec in array_specs(rules)}


def _wanted_counts(
    batch: CompactBatch, rules: CacheRules, rule: TokenRule, gaps: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The smallest number of entries per token `[N]` that reaches the rule's top_p; all where none does."""
    counts = batch.arrays["tok_n"].astype(np.int64)
    if rule.top_p == rules.token_rule.top_p:
        return counts
    temperature = rule.top_p_temperature
    starts = np.cumsum(counts) - counts
    weights = np.exp(-gaps / temperature)
    tail = np.exp(batch.float32("tail_lse")[:, rules.token_rule.temperatures.index(temperature)].astype(np.float64))
    total = np.add.reduceat(weights, starts) + tail
    running = np.cumsum(weights)
    before = np.repeat(running[starts] - weights[starts], counts)
    below = running - before < rule.top_p * np.repeat(total, counts)
    return np.minimum(np.add.reduceat(below, starts, dtype=np.int64) + 1, counts)


def _widened_tail(
    batch: CompactBatch,
    rule: TokenRule,
    columns: Sequence[int],
    token: NDArray[np.int64],
    gaps: NDArray[np.float64],
    dropped: NDArray[np.bool_],
) -> dict[str, NDArray[Any]]:
    """`tail_lse` and, if held, `tail_energy` at the rule's temperatures with the dropped entries added."""
    tail_lse = batch.arrays["tail_lse"][:, columns].astype(np.float64)
    held = batch.optional("tail_energy")
    tail_energy = np.zeros_like(tail_lse) if held is None else held[:, columns].astype(np.float64)
    num_tokens = len(tail_lse)
    for column, temperature in enumerate(rule.temperatures):
        weights = np.where(dropped, np.exp(-gaps / temperature), 0.0)
        mass = np.bincount(token, weights=weights, minlength=num_tokens)
        energy = np.bincount(token, weights=weights * gaps, minlength=num_tokens)
        changed = mass > 0
        before = np.exp(tail_lse[changed, column])
        total = before + mass[changed]
        tail_energy[changed, column] = (before * tail_energy[changed, column] + energy[changed]) / total
        tail_lse[changed, column] = np.log(total)
    arrays = {"tail_lse": tail_lse} if held is None else {"tail_lse": tail_lse, "tail_energy": tail_energy}
    return {name: array.astype(batch.arrays[name].dtype) for name, array in arrays.items()}


def _narrowed_rule(
    cache: TeacherCache, top_k: int | None, top_p: float | None, temperatures: Sequence[float] | None
) -> TokenRule:
    old = cache.manifest.token_rule
    rule = dataclasses.replace(
        old,
        top_k=old.top_k if top_k is None else top_k,
        top_p=old.top_p if top_p is None else top_p,
        temperatures=old.temperatures if temperatures is None else tuple(map(float, temperatures)),
    )
    if rule.top_k > old.top_k or rule.top_p > old.top_p or not set(rule.temperatures) <= set(old.temperatures):
        raise CacheError(
            f"{cache.location} keeps top_k {old.top_k}, top_p {old.top_p} and temperatures {old.temperatures}; asked "
            f"for {rule.top_k}, {rule.top_p} and {rule.temperatures}; derive the same or less, or run the teacher again"
        )
    if rule.top_p < old.top_p and old.top_p_temperature not in old.temperatures:
        raise CacheError(
            f"{cache.location} measures top_p at temperature {old.top_p_temperature} but holds the tail at "
            f"{old.temperatures} only; derive by top_k, or run the teacher again"
        )
    return rule


def _stored_shards(cache: TeacherCache, chosen: NDArray[np.int64]) -> Iterator[tuple[CompactBatch, pa.Table]]:
    """The chosen samples of every shard that has any, and their rows."""
    for start, stop in cache.shard_ranges():
        indices = chosen[(start <= chosen) & (chosen < stop)]
        if len(indices):
            yield cache.batch(indices), cache.rows_of_shard(start).take(pa.array(indices - start))


def _updated_rows(batch: CompactBatch, rows: pa.Table, rule: TokenRule) -> pa.Table:
    """The rows with the teacher's means under the new rule."""
    counts = batch.arrays["tok_n"].astype(np.int64)
    gold_gap, tail_lse = batch.float32("gold_gap"), batch.float32("tail_lse")
    summaries = token_summaries(
        rule.temperatures, counts, batch.gaps(), gold_gap, tail_lse, batch.optional("tail_energy")
    )
    means: Mapping[str, NDArray[np.float64]] = sample_means(summaries, batch.token_ptr)
    for name, values in means.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    return rows

"""How far two caches of the same samples disagree: two precisions, two backends, two runs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_cache.batch import CompactBatch
from betakd_cache.errors import CacheError
from betakd_cache.reader import TeacherCache, open_cache

BATCH_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class Difference:
    """Two caches compared on the samples they share, at `temperature`.

    `id_agreement` is the mean over tokens of ids kept by both / ids kept by either; `top_agreement` the share of tokens
    with the same first id; log probabilities (nats) are compared on the ids that both keep.
    """

    left: str
    right: str
    num_shared: int
    num_only_left: int
    num_only_right: int
    num_other_tokens: int
    """Shared samples whose answer tokens differ; they are left out of the figures below."""
    num_tokens: int
    temperature: float
    id_agreement: float
    top_agreement: float
    largest_log_prob_difference: float
    mean_log_prob_difference: float
    largest_feature_difference: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def diff(left: Path | str, right: Path | str) -> Difference:
    """How the caches at `left` and `right` differ. Raises CacheError where they cannot be compared."""
    caches = (open_cache(left), open_cache(right))
    temperature = _shared_temperature(*caches)
    ids = [cache.sample_ids.to_pylist() for cache in caches]
    shared = sorted(set(ids[0]) & set(ids[1]))
    indices = [cache.index_of(shared) for cache in caches]
    totals = np.zeros(5)  # tokens, id agreement, same first id, entries compared, log-probability differences
    largest = largest_feature = 0.0
    num_other_tokens = 0
    for start in range(0, len(shared), BATCH_SAMPLES):
        chosen = [part[start : start + BATCH_SAMPLES] for part in indices]
        same = _same_tokens(*(cache.batch(part) for cache, part in zip(caches, chosen, strict=True)))
        num_other_tokens += int((~same).sum())
        if not same.any():
            continue
        first, second = (cache.batch(part[same]) for cache, part in zip(caches, chosen, strict=True))
        sums, differences = _compare(first, second, caches, temperature)
        totals += [*sums, len(differences), differences.sum()]
        largest = max(largest, differences.max(initial=0.0))
        largest_feature = max(largest_feature, _largest_feature_difference(first, second))
    num_tokens = int(totals[0])
    return Difference(
        left=str(left),
        right=str(right),
        num_shared=len(shared),
        num_only_left=len(ids[0]) - len(shared),
        num_only_right=len(ids[1]) - len(shared),
        num_other_tokens=num_other_tokens,
        num_tokens=num_tokens,
        temperature=temperature,
        id_agreement=float(totals[1] / max(num_tokens, 1)),
        top_agreement=float(totals[2] / max(num_tokens, 1)),
        largest_log_prob_difference=float(largest),
        mean_log_prob_difference=float(totals[4] / max(totals[3], 1)),
        largest_feature_difference=float(largest_feature),
    )


def log_probs(batch: CompactBatch, temperature: float, column: int) -> NDArray[np.float64]:
    """The log probability `[E]` of every kept entry; kept entries and tail sum to one at every token."""
    counts = batch.arrays["tok_n"].astype(np.int64)
    scaled = -batch.gaps().astype(np.float64) / temperature
    kept = np.add.reduceat(np.exp(scaled), np.cumsum(counts) - counts)
    total = kept + np.exp(batch.arrays["tail_lse"][:, column].astype(np.float64))
    return scaled - np.repeat(np.log(total), counts)


def _compare(
    left: CompactBatch, right: CompactBatch, caches: tuple[TeacherCache, TeacherCache], temperature: float
) -> tuple[list[float], NDArray[np.float64]]:
    """(tokens, summed id agreement, tokens of the same first id) and the differences on shared entries."""
    keys, values, counts, firsts = [], [], [], []
    for batch, cache in zip((left, right), caches, strict=True):
        count = batch.arrays["tok_n"].astype(np.int64)
        keys.append(np.repeat(np.arange(len(count)), count) * cache.manifest.vocabulary_size + batch.ids())
        values.append(log_probs(batch, temperature, cache.manifest.token_rule.temperatures.index(temperature)))
        counts.append(count)
        firsts.append(batch.ids()[np.cumsum(count) - count])
    common, in_left, in_right = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    shared = np.bincount(common // caches[0].manifest.vocabulary_size, minlength=len(counts[0]))
    agreement = shared / (counts[0] + counts[1] - shared)
    sums = [len(shared), agreement.sum(), (firsts[0] == firsts[1]).sum()]
    return sums, np.abs(values[0][in_left] - values[1][in_right])


def _same_tokens(left: CompactBatch, right: CompactBatch) -> NDArray[np.bool_]:
    """Which samples `[S]` have the same answer tokens in both."""
    same = np.diff(left.token_ptr) == np.diff(right.token_ptr)
    tokens = (left.token_ids(), right.token_ids())
    for place in np.flatnonzero(same):
        one, other = (slice(*batch.token_ptr[place : place + 2]) for batch in (left, right))
        same[place] = np.array_equal(tokens[0][one], tokens[1][other])
    return same


def _largest_feature_difference(left: CompactBatch, right: CompactBatch) -> float:
    """0 where the caches share no feature of one size and number of places."""
    names = set(left.feature_names()) & set(right.feature_names())
    pairs = [(left.feature(name), right.feature(name)) for name in names]
    return max((float(np.abs(one - two).max()) for one, two in pairs if one.shape == two.shape), default=0.0)


def _shared_temperature(left: TeacherCache, right: TeacherCache) -> float:
    sizes = (left.manifest.vocabulary_size, right.manifest.vocabulary_size)
    if sizes[0] != sizes[1]:
        raise CacheError(
            f"{left.location} has a vocabulary of {sizes[0]}, {right.location} of {sizes[1]}; "
            "compare caches of one vocabulary"
        )
    grids = (left.manifest.token_rule.temperatures, right.manifest.token_rule.temperatures)
    shared = set(grids[0]) & set(grids[1])
    if not shared:
        raise CacheError(
            f"{left.location} holds temperatures {grids[0]}, {right.location} {grids[1]}; compare caches that share one"
        )
    return min(shared, key=lambda temperature: abs(np.log(temperature)))

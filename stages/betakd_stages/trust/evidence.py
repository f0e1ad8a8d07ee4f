"""What the cache and the labels say of every sample, read in batches: memory grows with samples, not with tokens."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from betakd_cache import CompactBatch, TeacherCache
from betakd_stages.distillation.cached_targets import CachedBatch, decode_batch
from betakd_stages.progress import Progress
from betakd_stages.trust.background import Answers, Background
from betakd_stages.trust.groups import Groups

BATCH_SAMPLES = 2048
MAX_TOKENS = 16
"""Tokens kept of a sample: those at which teacher and background differ most. Others say nothing of the teacher: with
p_T = b the mixture is the same whatever pi."""
MAX_FEATURE_SIZE = 64
"""A wider feature is projected to so many directions, random ones, drawn once."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """S samples of F inputs and at most T tokens."""

    inputs: Floats
    """[S, F], without any label in them: the teacher's pooled features, and how sure it was."""
    teacher: Floats
    """[S, T] log p_T of the label's tokens; 0 at padding, in both, so that padding says nothing."""
    background: Floats
    """[S, T] log b of them."""
    margin: Floats
    """[S], the least of the sample's tokens."""
    gap: Floats
    """[S], nats that the label lies below the teacher's own answer; 0 where they agree."""

    def alike(self) -> "Evidence":
        """The same with inputs that tell no sample from another."""
        return replace(self, inputs=np.zeros((len(self.margin), 1), np.float32))

    def taken(self, places: NDArray[np.int64]) -> "Evidence":
        """The samples of these places, in this order."""
        return replace(self, **{field.name: getattr(self, field.name)[places] for field in fields(self)})


def read_evidence(
    cache: TeacherCache, indices: NDArray[np.int64], groups: Groups, seed: int, progress: Progress
) -> Evidence:
    """The evidence of the samples of these indices `[S]`, which are read twice: once to count, once to compare."""
    background = Background(cache.manifest.vocabulary_size)
    parts = []
    progress.start("samples, twice", total=2 * len(indices))
    try:
        for places, batch in _batches(cache, indices):
            background.add(_answers(batch, groups.of_sample[places]))
            progress.advance(len(places))
        for places, batch in _batches(cache, indices):
            chance = background.log_probabilities(_answers(batch, groups.of_sample[places]))
            parts.append(_evidence(decode_batch(batch, cache.manifest, torch.device("cpu")), chance, cache, seed))
            progress.advance(len(places))
    finally:
        progress.finish()
    return Evidence(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Evidence)}
    )


def _batches(cache: TeacherCache, indices: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], CompactBatch]]:
    """Places among the indices, and what the cache has there; in the order of the cache."""
    for start in range(0, len(indices), BATCH_SAMPLES):
        places = np.arange(start, min(start + BATCH_SAMPLES, len(indices)))
        yield places, cache.batch(indices[places])


def _answers(batch: CompactBatch, groups: NDArray[np.int32]) -> Answers:
    return Answers(batch.token_ids(), batch.token_ptr, groups)


def _evidence(batch: CachedBatch, chance: NDArray[np.float64], cache: TeacherCache, seed: int) -> Evidence:
    targets = batch.targets
    samples, count = targets.sample_index.numpy(), targets.num_samples
    gold = targets.gold_log_probability().numpy()
    margin = _least(targets.margin().numpy(), samples, count)
    scalars = (
        np.bincount(samples, targets.entropy().numpy(), count),
        _least(targets.largest_probability().numpy(), samples, count),
        margin,
    )
    # The prompt's feature has seen the image and the question; the image's own is the next best.
    names = ["prompt"] if "prompt" in batch.present else sorted(batch.present)
    features = [_feature(batch, name, cache, seed) for name in names]
    teacher, background = _most_telling(gold, chance.astype(np.float32), samples, count)
    return Evidence(
        inputs=np.column_stack([*features, *scalars]).astype(np.float32),
        teacher=teacher,
        background=background,
        margin=margin,
        gap=np.bincount(samples, -targets.gold_logit.numpy(), count).astype(np.float32),
    )


def _least(values: Floats, samples: NDArray[np.int64], count: int) -> Floats:
    """The least value of each sample; 1 where it has no token."""
    least = np.ones(count, np.float32)
    np.minimum.at(least, samples, values)
    return least


def _most_telling(gold: Floats, chance: Floats, samples: NDArray[np.int64], count: int) -> tuple[Floats, Floats]:
    """Both log probabilities `[S, MAX_TOKENS]` at the tokens of each sample where they differ most, 0 at padding."""
    order = np.lexsort((-np.abs(gold - chance), samples))
    first = np.searchsorted(samples[order], np.arange(count))
    rank = np.arange(len(order)) - first[samples[order]]
    kept = rank < MAX_TOKENS
    tables = []
    for values in (gold, chance):
        table = np.zeros((count, MAX_TOKENS), np.float32)
        table[samples[order][kept], rank[kept]] = values[order][kept]
        tables.append(table)
    return tables[0], tables[1]


def _feature(batch: CachedBatch, name: str, cache: TeacherCache, seed: int) -> NDArray[np.float64]:
    """A feature `[S, D]`, standardised over the cache, 0 where absent; D at most MAX_FEATURE_SIZE."""
    held = cache.manifest.feature_statistics[name]
    values = batch.features[name].numpy().astype(np.float64)
    pooled = values.mean(axis=tuple(range(1, values.ndim - 1)))
    standard = (pooled - held.mean) / np.where(held.deviation == 0, 1, held.deviation)
    standard[~batch.present[name].numpy()] = 0
    if standard.shape[1] <= MAX_FEATURE_SIZE:
        return standard
    directions = np.random.default_rng(seed).normal(size=(standard.shape[1], MAX_FEATURE_SIZE))
    return standard @ directions / np.sqrt(standard.shape[1])


def order_by_hash(sample_ids: list[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The places `[S]` of samples in the order of their ids' hashes, and those hashes `[S]` in that order.

    What is drawn at random is drawn in this order, so that it does not depend on that of the cache.
    """
    hashes = np.array(
        [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") for name in sample_ids], np.uint64
    )
    order = np.argsort(hashes, kind="stable")
    return order, hashes[order]

"""What caches and labels say of every sample, read in batches: memory grows with samples, not with tokens.

`cache trust` reads one cache; the learned weights of several teachers are fitted to all of theirs together.
"""

import hashlib
from collections.abc import Iterator, Sequence
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
"""Tokens kept of a sample: those at which a teacher and background differ most. Others say nothing of the teachers:
with p_t = b the mixture is the same whatever pi."""
MAX_FEATURE_SIZE = 64
"""A wider feature is projected to so many directions, random ones, drawn once."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """S samples of F inputs and at most L tokens, and what T teachers say of them."""

    inputs: Floats
    """[S, F], without any label in them: every teacher's pooled features, and how sure it was; the mean of its samples
    where it lacks this one."""
    teachers: Floats
    """[S, T, L] log p_t of the label's tokens, log b where a teacher lacks the sample; 0 at padding, in both, so that
    padding says nothing."""
    background: Floats
    """[S, L] log b of them."""
    held: NDArray[np.bool_]
    """[S, T] which teachers have the sample."""
    margin: Floats
    """[S, T], the least of the sample's tokens; 0 where a teacher lacks the sample."""
    gap: Floats
    """[S, T], nats that the label lies below the teacher's own answer; 0 where they agree."""

    def alike(self) -> "Evidence":
        """The same with inputs that tell no sample from another."""
        return replace(self, inputs=np.zeros((len(self.inputs), 1), np.float32))

    def taken(self, places: NDArray[np.int64]) -> "Evidence":
        """The samples of these places, in this order."""
        return replace(self, **{field.name: getattr(self, field.name)[places] for field in fields(self)})


def read_evidence(
    caches: Sequence[TeacherCache], indices: NDArray[np.int64], groups: Groups, seed: int, progress: Progress
) -> Evidence:
    """The evidence of samples of which each cache has an index `[S, T]`, or -1; every sample is in one of them.

    They are read twice: once to count, once to compare.
    """
    background = Background(caches[0].manifest.vocabulary_size)
    parts = []
    progress.start("samples, twice", total=2 * len(indices))
    try:
        for places, batches in _batches(caches, indices):
            background.add(_answers(batches, indices[places] >= 0, groups.of_sample[places]))
            progress.advance(len(places))
        for places, batches in _batches(caches, indices):
            answers = _answers(batches, indices[places] >= 0, groups.of_sample[places])
            views = [_view(batch, cache, seed) for batch, cache in zip(batches, caches, strict=True)]
            parts.append(_evidence(views, indices[places] >= 0, answers, background))
            progress.advance(len(places))
    finally:
        progress.finish()
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Evidence)}
    return Evidence(**{**columns, "inputs": _filled(columns["inputs"])})


def _batches(
    caches: Sequence[TeacherCache], indices: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], list[CompactBatch]]]:
    """Places among the indices, and what each cache has there; in the order of the indices."""
    for start in range(0, len(indices), BATCH_SAMPLES):
        places = np.arange(start, min(start + BATCH_SAMPLES, len(indices)))
        columns = indices[places].T
        yield places, [cache.batch(column[column >= 0]) for cache, column in zip(caches, columns, strict=True)]


def _answers(batches: Sequence[CompactBatch], held: NDArray[np.bool_], groups: NDArray[np.int32]) -> Answers:
    """The answers of samples of which each cache has those held `[S, T]`; whoever has one has the same tokens."""
    lengths = np.zeros(len(held), np.int64)
    for batch, of_cache in zip(batches, held.T, strict=True):
        lengths[of_cache] = np.diff(batch.token_ptr)
    answers = Answers(np.zeros(lengths.sum(), np.int64), np.cumsum([0, *lengths]), groups)
    for batch, of_cache in zip(batches, held.T, strict=True):
        answers.token_ids[of_cache[answers.sample_index]] = batch.token_ids()
    return answers


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """What one teacher says of those of the samples that it has, N tokens in all."""

    inputs: Floats
    gold: Floats  # [N]
    margin: Floats
    gap: Floats


def _view(batch: CompactBatch, cache: TeacherCache, seed: int) -> _View:
    cached = decode_batch(batch, cache.manifest, torch.device("cpu"))
    targets = cached.targets
    samples, count = targets.sample_index.numpy(), targets.num_samples
    margin = _least(targets.margin().numpy(), samples, count)
    scalars = (
        np.bincount(samples, targets.entropy().numpy(), count),
        _least(targets.largest_probability().numpy(), samples, count),
        margin,
    )
    # The prompt's feature has seen the image and the question; the image's own is the next best.
    names = ["prompt"] if "prompt" in cached.present else sorted(cached.present)
    features = [_feature(cached, name, cache, seed) for name in names]
    return _View(
        inputs=np.column_stack([*features, *scalars]).astype(np.float32),
        gold=targets.gold_log_probability().numpy(),
        margin=margin,
        gap=np.bincount(samples, -targets.gold_logit.numpy(), count).astype(np.float32),
    )


def _evidence(views: Sequence[_View], held: NDArray[np.bool_], answers: Answers, background: Background) -> Evidence:
    """The evidence of S samples from the view of each teacher; inputs are NaN where it lacks the sample."""
    chance = background.log_probabilities(answers).astype(np.float32)
    gold = np.repeat(chance[:, None], len(views), axis=1)
    inputs = [np.full((len(held), view.inputs.shape[1]), np.nan, np.float32) for view in views]
    margin, gap = np.zeros(held.shape, np.float32), np.zeros(held.shape, np.float32)
    for number, view in enumerate(views):
        of_view = held[:, number]
        gold[of_view[answers.sample_index], number] = view.gold
        inputs[number][of_view] = view.inputs
        margin[of_view, number], gap[of_view, number] = view.margin, view.gap
    told = _most_telling(np.column_stack([gold, chance]), answers.sample_index, len(held))
    return Evidence(np.concatenate(inputs, axis=1), told[:, :-1], told[:, -1], held, margin, gap)


def _filled(inputs: Floats) -> Floats:
    """The inputs `[S, F]` with the mean of its column in the place of every NaN."""
    missing = np.isnan(inputs)
    totals = np.where(missing, 0, inputs).sum(axis=0, dtype=np.float64)
    means = totals / np.maximum((~missing).sum(axis=0), 1)
    return np.where(missing, means.astype(np.float32), inputs)


def _least(values: Floats, samples: NDArray[np.int64], count: int) -> Floats:
    """The least value of each sample; 1 where it has no token."""
    least = np.ones(count, np.float32)
    np.minimum.at(least, samples, values)
    return least


def _most_telling(values: Floats, samples: NDArray[np.int64], count: int) -> Floats:
    """Log probabilities `[N, T + 1]`, the background's last, at the tokens of each sample where a teacher's differs
    most from it: `[S, T + 1, MAX_TOKENS]`, 0 at padding."""
    difference = np.abs(values[:, :-1] - values[:, -1:]).max(axis=1)
    order = np.lexsort((-difference, samples))
    first = np.searchsorted(samples[order], np.arange(count))
    rank = np.arange(len(order)) - first[samples[order]]
    kept = rank < MAX_TOKENS
    table = np.zeros((count, values.shape[1], MAX_TOKENS), np.float32)
    table[samples[order][kept], :, rank[kept]] = values[order][kept]
    return table


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

"""What several caches hold of a run's samples: read together, decoded, and put together as the settings say.

S samples of the run, B of a batch, T teachers, N supervised tokens of a batch.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from betakd_cache import CompactBatch, FeatureLayout, TeacherCache
from betakd_stages.distillation.cached_targets import CachedBatch, decode_batch, labels_only
from betakd_stages.ensemble.mixing import mix_targets
from betakd_stages.ensemble.names import in_its_cache, numbered, owner
from betakd_stages.ensemble.prior import Experts
from betakd_stages.ensemble.rules import sample_means, teacher_weights
from betakd_stages.objective import FOCUS_SUFFIX
from betakd_stages.settings.ensemble import EnsembleSettings
from betakd_stages.targets import TeacherTargets


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleBatch:
    """The bytes that T caches hold about B samples; small, and picklable."""

    parts: tuple[CompactBatch, ...]
    """Of the samples that each holds, in the order of the batch."""
    held: Tensor
    """bool `[B, T]`."""
    given: Tensor | None
    """float32 `[B, T]`, the numbers of a rule that is fitted before training."""
    trust: Tensor | None
    """float32 `[B, T]`, 0 where not held; None where nothing needs it."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherEnsemble:
    """T caches and where they hold the S samples of a run; it stands where one cache and its manifest would."""

    caches: tuple[TeacherCache, ...]
    indices: NDArray[np.int64]
    """[S, T], -1 where a cache lacks the sample."""
    settings: EnsembleSettings
    given: NDArray[np.float32] | None = None
    """[S, T]"""
    trust: NDArray[np.float32] | None = None
    """[S, T]"""

    def batch(self, places: ArrayLike) -> EnsembleBatch:
        """The samples at these places of the run."""
        places = np.asarray(places, np.int64)
        indices = self.indices[places]
        return EnsembleBatch(
            tuple(cache.batch(of[of >= 0]) for cache, of in zip(self.caches, indices.T, strict=True)),
            torch.from_numpy(indices >= 0),
            None if self.given is None else torch.from_numpy(self.given[places]),
            None if self.trust is None else torch.from_numpy(self.trust[places]),
        )

    def layout(self, feature: str) -> FeatureLayout:
        """How a teacher's feature, such as `vision@2`, is laid out."""
        return self.caches[owner(feature)].manifest.rules.layout(in_its_cache(feature))

    @property
    def num_missing(self) -> tuple[int, ...]:
        """How many of the run's samples each cache lacks."""
        return tuple((self.indices < 0).sum(axis=0).tolist())

    @property
    def num_carried(self) -> int:
        """How many of the run's samples some cache lacks, so that others carry them."""
        return int((self.indices < 0).any(axis=1).sum())

    def decode(self, batch: EnsembleBatch, device: torch.device) -> CachedBatch:
        """The batch as tensors on the device: the mixture's targets, and the teachers themselves where they count."""
        decoded = [
            decode_batch(part, cache.manifest, device) for part, cache in zip(batch.parts, self.caches, strict=True)
        ]
        held = batch.held.to(device)
        everything = _expand_all([each.targets for each in decoded], held)
        weights = teacher_weights(
            self.settings.weighting,
            everything,
            held,
            per_token=self.settings.per == "token",
            entropy_scale=self.settings.entropy_scale,
            given=None if batch.given is None else batch.given.to(device),
        )
        mixed = mix_targets(everything, weights)
        of_samples = sample_means(weights, mixed.sample_index, mixed.num_samples)
        if batch.trust is not None:
            mixed = dataclasses.replace(mixed, trust=(of_samples * batch.trust.to(device)).sum(dim=1).float())
        features, present = _numbered_features(decoded, held)
        experts = None if self.settings.combine == "mixture" else Experts(tuple(everything), held, of_samples)
        return CachedBatch(mixed, features, present, experts)


def _expand_all(parts: Sequence[TeacherTargets], held: Tensor) -> list[TeacherTargets]:
    """The targets of all B samples for each teacher; where one does not hold a sample it stands certain of the labels,
    to be given weight 0."""
    counts = torch.zeros(len(held), dtype=torch.int64, device=held.device)
    for part, own in zip(parts, held.T, strict=True):
        counts[own] = torch.bincount(part.sample_index, minlength=part.num_samples)
    sample_index = torch.repeat_interleave(torch.arange(len(held), device=held.device), counts)
    masks = held[sample_index].T
    gold_ids = torch.zeros_like(sample_index)
    for part, mask in zip(parts, masks, strict=True):
        gold_ids[mask] = part.gold_ids
    filler = labels_only(gold_ids, sample_index, len(held), parts[0].vocabulary_size)
    return [_expanded(part, mask, filler) for part, mask in zip(parts, masks, strict=True)]


def _expanded(part: TeacherTargets, mask: Tensor, filler: TeacherTargets) -> TeacherTargets:
    """The targets with those of other tokens between them, where `mask` bool `[N]` is false."""
    if bool(mask.all()):
        return dataclasses.replace(part, sample_index=filler.sample_index, num_samples=filler.num_samples)
    width, grid = part.ids.shape[1], len(part.temperatures)

    def between(own: Tensor, other: Tensor) -> Tensor:
        rows = other.to(own.dtype)
        rows = rows.expand(len(mask), grid) if own.ndim > 1 else rows
        rows = rows.clone()
        rows[mask] = own
        return rows

    def padded(own: Tensor, first: Tensor, padding: float | bool) -> Tensor:
        rows = torch.full((len(mask), max(width, 1)), padding, dtype=own.dtype, device=own.device)
        rows[:, 0] = first.to(own.dtype)
        rows[mask, :width] = own
        return rows

    ones = torch.ones_like(filler.gold_logit)
    return dataclasses.replace(
        filler,
        ids=padded(part.ids, filler.gold_ids, 0),
        kept=padded(part.kept, filler.kept[:, 0], False),
        logits=padded(part.logits, filler.logits[:, 0], -torch.inf),
        gold_logit=between(part.gold_logit, filler.gold_logit),
        temperatures=part.temperatures,
        tail_lse=between(part.tail_lse, filler.tail_lse),
        tail_energy=None if part.tail_energy is None else between(part.tail_energy, filler.logits),
        logit_max=None if part.logit_max is None else between(part.logit_max, ones),
        logit_mean=None if part.logit_mean is None else between(part.logit_mean, ones),
        logit_std=None if part.logit_std is None else between(part.logit_std, ones),
    )


def _numbered_features(decoded: Sequence[CachedBatch], held: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every teacher's features by `NAME@t`, `[B, ...]`, and which samples have them."""
    features, present = {}, {}
    for teacher, (batch, own) in enumerate(zip(decoded, held.T, strict=True)):
        for name, there in batch.present.items():
            present[numbered(name, teacher)] = _in_rows(there, own)
            for suffix in ("", FOCUS_SUFFIX):
                if f"{name}{suffix}" in batch.features:
                    features[numbered(name, teacher) + suffix] = _in_rows(batch.features[f"{name}{suffix}"], own)
    return features, present


def _in_rows(values: Tensor, own: Tensor) -> Tensor:
    """Rows `[B, ...]` with the values at those where `own` bool `[B]` is true, and 0 at others."""
    rows = values.new_zeros(len(own), *values.shape[1:])
    rows[own] = values
    return rows

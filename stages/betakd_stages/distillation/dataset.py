"""Training examples: an encoded sample and what the cache says about it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from betakd_cache import TeacherCache
from betakd_stages.data.sample import Sample
from betakd_stages.distillation.cached_answers import CachedAnswers
from betakd_stages.distillation.cached_vision import TrainingEncoder
from betakd_stages.distillation.matching import MatchedSamples
from betakd_stages.encoding import EncodedSample, packed
from betakd_stages.encoding.written import with_answers
from betakd_stages.ensemble.records import TeacherEnsemble
from betakd_stages.errors import MismatchError

MEMORY_BYTES = 256 * 2**20
"""Encoded samples are kept in memory up to this size: small sets are then encoded once, not once per epoch."""


class EncodedSamples(Dataset):
    """Encodes samples when they are asked for; item i is (i, the encoded sample)."""

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: TrainingEncoder,
        image_sha256: Sequence[str | None] | None,
        answers: CachedAnswers | None = None,
    ) -> None:
        """`image_sha256`: what every image must be, or None where nothing is known about them. `answers`: what stands
        in the place of the samples' own, or None where those are learned."""
        self._samples = samples
        self._encoder = encoder
        self._image_sha256 = image_sha256
        self._answers = answers
        self._kept: dict[int, EncodedSample] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[int, EncodedSample]:
        """Item `index`. Raises DataError for an unreadable image, MismatchError for one the teacher did not see."""
        if index in self._kept:
            return index, self._kept[index]
        encoded = self._encoder.encode(self._samples[index])
        if self._answers is not None:
            encoded = with_answers(encoded, self._answers[index])
            self._encoder.require_length(encoded.sample_id, len(encoded.input_ids))
        if self._image_sha256 is not None and encoded.image_sha256 != self._image_sha256[index]:
            raise MismatchError(
                f"sample {encoded.sample_id!r}: its image is not the one the teacher saw (sha256 "
                f"{encoded.image_sha256} against {self._image_sha256[index]}). Give the images the cache was made "
                "from, or run the teacher again"
            )
        if self._kept_bytes + encoded.num_bytes <= MEMORY_BYTES:
            self._kept[index] = encoded
            self._kept_bytes += encoded.num_bytes
        return index, encoded


def make_collator(
    encoder: TrainingEncoder,
    cache: TeacherCache | TeacherEnsemble | None,
    cache_indices: NDArray[np.int64] | None,
    *,
    trust: NDArray[np.float32] | None = None,
    packing: bool = False,
) -> Callable[[list[tuple[int, EncodedSample]]], dict[str, Any]]:
    """The function that makes a batch: the encoder's tensors, sample_ids, and the cache's bytes as `teacher`.

    `cache_indices` `[S]` are where the cache holds the samples; several caches know that themselves.
    `trust` `[len(cache)]`, of every record in the cache, goes with the records. `packing` puts the samples into one row
    behind each other, without padding.
    """

    def collate(items: list[tuple[int, EncodedSample]]) -> dict[str, Any]:
        batch: dict[str, Any] = encoder.collate([encoded for _, encoded in items])
        if packing:
            batch = packed(batch)
        batch["sample_ids"] = [encoded.sample_id for _, encoded in items]
        if cache is not None and cache_indices is not None:
            records = cache_indices[[index for index, _ in items]]
            batch["teacher"] = cache.batch(records)
            if trust is not None:
                batch["trust"] = torch.from_numpy(trust[records])
        return batch

    return collate


def shuffled_within_lengths(matched: MatchedSamples, cache: TeacherCache, seed: int) -> NDArray[np.int64]:
    """Cache indices [S] that give every sample another sample's record with as many tokens: the control experiment.

    A sample that is alone with its length keeps its own record.
    """
    lengths = np.concatenate(
        [
            np.diff(cache.batch(matched.cache_indices[start : start + 4096]).token_ptr)
            for start in range(0, len(matched.cache_indices), 4096)
        ]
    )
    shuffled = matched.cache_indices.copy()
    generator = np.random.default_rng(seed)
    for length in np.unique(lengths):
        members = generator.permutation(np.flatnonzero(lengths == length))
        shuffled[members] = matched.cache_indices[np.roll(members, 1)]
    return shuffled

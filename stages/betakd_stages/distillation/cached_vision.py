"""A student's images as rows of a vision cache: pixels are not decoded and the tower does not run.

Of every image the file is still hashed, so that a row is that of the very image the sample has.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from betakd_cache import TeacherCache, open_cache
from betakd_stages.caching.kinds import TOWER, require_folder, require_of_tower
from betakd_stages.data.sample import Sample
from betakd_stages.encoding import EncodedSample, LlavaEncoder
from betakd_stages.errors import MismatchError
from betakd_stages.models.loading import LoadedModel
from betakd_stages.models.tower_rows import TOWER_ROWS, require_rows, tower_identity


class TrainingEncoder(Protocol):
    """What training asks of an encoder."""

    def encode(self, sample: Sample) -> EncodedSample:
        """The whole sample. Raises DataError where it cannot be had."""

    def require_length(self, sample_id: str, num_tokens: int) -> None:
        """Nothing; raises DataError where a sample has too many tokens."""

    def collate(self, encoded: Sequence[EncodedSample]) -> dict[str, Any]:
        """A padded batch."""


class RowsEncoder:
    """Encodes as a student's encoder does, but in the place of pixels a sample gets the place of its image's row, and
    a batch the rows [I, P, D] as stored. Pickled, it takes the cache's path along: a process opens it for itself."""

    def __init__(self, encoder: LlavaEncoder, cache: TeacherCache) -> None:
        self._encoder = encoder
        self._cache = cache

    def encode(self, sample: Sample) -> EncodedSample:
        """The whole sample. Raises DataError as the encoder does, MismatchError for an image that the cache lacks."""
        input_ids, labels = self._encoder.encode_text(sample)
        if sample.image is None:
            return EncodedSample(sample.sample_id, input_ids, labels, {}, {}, None)
        self._encoder.require_one_image(input_ids)
        sha256 = sample.image.sha256()
        place = torch.tensor([self._place(sample.sample_id, sha256)])
        return EncodedSample(sample.sample_id, input_ids, labels, {TOWER_ROWS: place}, {}, sha256)

    def require_length(self, sample_id: str, num_tokens: int) -> None:
        """Nothing; raises DataError where a sample has too many tokens."""
        self._encoder.require_length(sample_id, num_tokens)

    def collate(self, encoded: Sequence[EncodedSample]) -> dict[str, Any]:
        """A padded batch, its rows read from the cache in one go."""
        batch: dict[str, Any] = self._encoder.collate(encoded)
        if TOWER_ROWS in batch:
            rows = self._cache.batch(batch[TOWER_ROWS].numpy()).arrays[f"features/{TOWER}"]
            batch[TOWER_ROWS] = torch.from_numpy(rows)
        return batch

    def require_images(self, image_sha256: Sequence[str | None]) -> None:
        """Nothing; raises MismatchError where the cache lacks one of these images."""
        wanted = {sha256 for sha256 in image_sha256 if sha256 is not None}
        lacking = wanted.difference(self._cache.sample_ids.to_pylist())
        if lacking:
            raise MismatchError(
                f"{self._cache.location} lacks {len(lacking)} of the {len(wanted)} images of the data: run "
                "cache-vision with these data and the same --out, which adds them"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"_encoder": self._encoder, "_cache": self._cache}

    @functools.cached_property
    def _order(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """The cache's keys in ascending order, and their places: a table of hashes would take five times the memory."""
        keys = np.array([_key(sha256) for sha256 in self._cache.sample_ids.to_pylist()], "S32")
        order = np.argsort(keys)
        return keys[order], order

    def _place(self, sample_id: str, sha256: str) -> int:
        keys, order = self._order
        key = np.bytes_(_key(sha256))
        found = int(np.searchsorted(keys, key))
        if found == len(keys) or keys[found] != key:
            raise MismatchError(
                f"sample {sample_id!r}: {self._cache.location} lacks its image (sha256 {sha256}): give the images it "
                "was made from, or run cache-vision with these data and the same --out, which adds them"
            )
        return int(order[found])


def training_encoder(
    vision_cache: str | None, student: LoadedModel, image_sha256: Sequence[str | None] | None
) -> TrainingEncoder:
    """The student's encoder or, where a vision cache is given, what `rows_encoder` makes of it."""
    if vision_cache is None:
        return student.encoder
    require_folder(vision_cache)
    return rows_encoder(student, open_cache(vision_cache), image_sha256)


def rows_encoder(student: LoadedModel, cache: TeacherCache, image_sha256: Sequence[str | None] | None) -> RowsEncoder:
    """What makes batches for this student out of a vision cache; `image_sha256` are those of the images, if known.

    Raises MismatchError for a cache of another tower or image processing and for one that lacks an image, ModelError
    for a student whose tower's output is not in one place.
    """
    encoder = require_rows(student.encoder)
    require_of_tower(cache)
    held = cache.manifest.identity
    own = {TOWER: tower_identity(student.model), "image_processor": encoder.identity()["image_processor"]}
    for part, name in ((TOWER, "vision tower"), ("image_processor", "image processor")):
        for key, found in own[part].items():
            if held[part][key] != found:
                raise MismatchError(
                    f"the student's {name} is not the one of {cache.location} ({key}: {found} against "
                    f"{held[part][key]}): run cache-vision with this student, or give the student it was run with"
                )
    rows = RowsEncoder(encoder, cache)
    if image_sha256 is not None:
        rows.require_images(image_sha256)
    return rows


def _key(sha256: str) -> bytes:
    return bytes.fromhex(sha256)

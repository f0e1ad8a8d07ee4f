"""Whether a teacher looks at the images: a blind one costs as much to cache as any other, and teaches language only."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from betakd_cache import TeacherRecord
from betakd_stages.data.sample import LoadedImage, Sample
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.errors import DataError, ModelError
from betakd_stages.teachers.base import Teacher

NUM_SAMPLES = 8
NUM_LOOKED_AT = 512
"""Samples among which those with an image are sought: a mixture may hold few."""
LEAST_NATS = 0.01
"""Mean divergence below which images hardly matter: above the noise of bfloat16, below one answer in ten that looks."""
LEAST_LOGIT = -80.0
"""Of a tail without mass, so that differences stay numbers."""
GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class Grounding:
    """How far the teacher's distributions over the answer tokens move when the image is blank."""

    num_samples: int
    num_tokens: int
    mean_kl: float
    """KL(with || blank) in nats, averaged over the tokens."""
    share_changed: float
    """Of the tokens, those whose most likely id is another."""

    @property
    def is_grounded(self) -> bool:
        """Whether the images matter."""
        return self.mean_kl >= LEAST_NATS


def measure_grounding(teacher: Teacher, samples: Sequence[Sample]) -> Grounding | None:
    """What a few of these samples, spread over them, say with their image and with a grey one of the same size.

    The prompt stays the same, visual tokens included: leaving the image out would change the answers of a teacher whose
    projector is broken too. None where no sample looked at has an image that can be read, or logits that are finite.
    """
    divergences, changed, num_samples = [], [], 0
    column = teacher.token_rule.temperatures.index(1.0)
    for pair in itertools.islice(_pairs(teacher.encoder, samples), NUM_SAMPLES):
        records = teacher.score(pair).records
        if len(records) < len(pair):
            continue
        seen, blank = (
            log_probabilities(record, record.tail_lse[:, column], teacher.vocabulary_size) for record in records
        )
        divergences.append((np.exp(seen) * (seen - blank)).sum(axis=1))
        changed.append(seen.argmax(axis=1) != blank.argmax(axis=1))
        num_samples += 1
    if not divergences:
        return None
    by_token = np.concatenate(divergences)
    return Grounding(num_samples, len(by_token), float(by_token.mean()), float(np.concatenate(changed).mean()))


def log_probabilities(
    record: TeacherRecord, tail_lse: NDArray[np.float32], vocabulary_size: int
) -> NDArray[np.float64]:
    """What a record says about every token of the vocabulary at temperature 1, `[T, V]`, given `tail_lse` `[T]` there:
    the tail's mass is spread evenly over the ids that the record lacks."""
    lacking = np.maximum(vocabulary_size - record.entry_counts, 1)
    spread = np.maximum(tail_lse.astype(np.float64) - np.log(lacking), LEAST_LOGIT)
    logits = np.repeat(spread[:, None], vocabulary_size, axis=1)
    logits[np.repeat(np.arange(len(lacking)), record.entry_counts), record.ids] = -record.gaps
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def check_grounding(teacher: Teacher, samples: Sequence[Sample], *, required: bool) -> None:
    """Nothing; warns where the teacher hardly looks at images, or raises ModelError where that is `required`."""
    found = measure_grounding(teacher, samples)
    if found is None:
        if required:
            raise ModelError(
                f"whether the teacher looks at images cannot be told: of {min(len(samples), NUM_LOOKED_AT)} samples "
                "looked at none has a readable image and finite logits, leave require_grounding out"
            )
        return
    if found.is_grounded:
        return
    message = (
        f"the teacher hardly looks at images: with a grey image instead, its distributions over {found.num_tokens} "
        f"answer tokens of {found.num_samples} samples move by {found.mean_kl:.2g} nats (expected {LEAST_NATS} or "
        f"more) and {found.share_changed:.0%} of its first choices change. Check that its checkpoint holds the "
        "projector and the vision tower it was trained with, and that the answers need the images"
    )
    if required:
        raise ModelError(message)
    logging.getLogger(__name__).warning(message)


def _pairs(encoder: Encoder, samples: Sequence[Sample]) -> Iterator[tuple[EncodedSample, EncodedSample]]:
    """Samples as they are and with a grey image; those without an image or with a broken one are passed over."""
    places = np.linspace(0, len(samples) - 1, min(len(samples), NUM_LOOKED_AT)).round().astype(int)
    # A few far apart first: one category of a mixture says little about the others.
    for place in sorted(places.tolist(), key=lambda place: (place * 0x9E3779B1) % 2**32):
        sample = samples[place]
        if sample.image is None:
            continue
        try:
            size = sample.image.load().pixels.size
            blank = dataclasses.replace(sample, image=_GreyImage(size))
            yield encoder.encode(sample), encoder.encode(blank)
        except DataError:
            continue  # the run itself names it, and stops or goes on as it is told to


@dataclass(frozen=True, slots=True)
class _GreyImage:
    size: tuple[int, int]

    def load(self) -> LoadedImage:
        return LoadedImage(Image.new("RGB", self.size, GREY), self.sha256())

    def sha256(self) -> str:
        return ""

"""What one training or test example is."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An RGB image and the sha256 of what it was read from (the file's bytes, or the pixels where no file exists)."""

    pixels: Image.Image
    sha256: str


class ImageReference(Protocol):
    """An image that is read when it is needed."""

    def load(self) -> LoadedImage:
        """The image. Raises DataError where it cannot be read."""
        ...

    def sha256(self) -> str:
        """The sha256 that `load` gives, without decoding. Raises DataError where what is hashed cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One example: an image (or none) and one or more turns about it."""

    sample_id: str
    image: ImageReference | None
    turns: tuple[Turn, ...]
    category: str = ""

    def content_sha256(self) -> str:
        """The sha256 of the questions and answers: what a cache remembers of the text."""
        turns = [[turn.question, turn.answer] for turn in self.turns]
        return hashlib.sha256(json.dumps([self.image is not None, turns]).encode()).hexdigest()


class LazySamples(Sequence[Sample]):
    """Samples made when they are asked for: `get(position)` for each of `positions`, in that order."""

    def __init__(self, get: Callable[[int], Sample], positions: range | NDArray[np.int64]) -> None:
        self._get = get
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return LazySamples(self._get, self._positions[index])
        return self._get(int(self._positions[index]))

    def __iter__(self) -> Iterator[Sample]:
        return (self._get(int(position)) for position in self._positions)


def chosen_samples(samples: Sequence[Sample], positions: Sequence[int] | NDArray[np.int64]) -> LazySamples:
    """The samples at these positions, in this order, made when they are asked for."""
    return LazySamples(samples.__getitem__, np.asarray(positions, dtype=np.int64))


@dataclass(frozen=True)
class SampleSet(Sequence[Sample]):
    """An ordered set of samples with distinct ids; `specification` names it in manifests and reports."""

    specification: str
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over ids and texts, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.sample_id}\0{sample.content_sha256()}\n".encode())
        return digest.hexdigest()

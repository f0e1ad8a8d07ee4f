"""The images of a sample set, each once: known by what is in the file, whatever its name."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from betakd_stages.data.sample import Sample
from betakd_stages.errors import DataError
from betakd_stages.progress import Progress

WINDOW_SAMPLES = 4096


class Skipped:
    """Counts samples whose image cannot be had, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def add(self, sample_id: str, reason: str) -> None:
        """Count one and say so. Raises DataError where it is one too many."""
        self.count += 1
        if self.count > self._limit:
            raise DataError(
                f"sample {sample_id}: {reason}. Mend it and run the same command again, or let --set max_skipped=N "
                f"pass over up to N such samples (now {self._limit})"
            )
        logging.getLogger(__name__).warning(f"passed over sample {sample_id}: {reason}")


@dataclass(frozen=True, slots=True)
class DistinctImages:
    """What a sample set has of images."""

    places: dict[str, int]
    """Where the first sample of each image is, by the sha256 of the image."""
    num_samples: int
    """Those with an image that can be read."""


def distinct_images(
    samples: Sequence[Sample], skipped: Skipped, *, num_threads: int, progress: Progress
) -> DistinctImages:
    """The distinct images of the samples, in their order; every file is read and hashed, none is decoded.

    Raises DataError where more images cannot be read than `skipped` allows.
    """
    places: dict[str, int] = {}
    num_samples = 0
    progress.start("images", total=len(samples))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="hash") as threads:
        for start in range(0, len(samples), WINDOW_SAMPLES):
            window = list(samples[start : start + WINDOW_SAMPLES])
            for place, (sample, found) in enumerate(zip(window, threads.map(_sha256, window), strict=True), start):
                if isinstance(found, DataError):
                    skipped.add(sample.sample_id, str(found))
                elif found is not None:
                    places.setdefault(found, place)
                    num_samples += 1
            progress.advance(len(window))
    progress.finish()
    return DistinctImages(places, num_samples)


def _sha256(sample: Sample) -> str | DataError | None:
    """The sha256 of a sample's image, None where it has none, or why it cannot be had."""
    try:
        return sample.image.sha256() if sample.image else None
    except DataError as error:
        return error

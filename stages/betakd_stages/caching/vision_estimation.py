"""What a run of `cache-vision` will cost and save, from encoding a few images with the real tower and writer."""

import dataclasses
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from betakd_cache import open_cache
from betakd_stages.caching.distinct_images import Skipped
from betakd_stages.caching.kinds import require_folder
from betakd_stages.caching.vision import encode_all, find_images, load_student, open_vision_writer
from betakd_stages.data import load_samples
from betakd_stages.data.sample import chosen_samples
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheVisionSettings

NUM_TIMED = 32


@dataclass(frozen=True, slots=True)
class VisionEstimate:
    """The cost of caching `num_images`, by that of `num_timed` of them, taken evenly over the set."""

    num_samples: int
    """Samples with an image."""
    num_images: int
    num_timed: int
    bytes_per_image: int
    total_bytes: int
    free_bytes: int
    """Where the cache is to be."""
    seconds_per_image: float
    hours: float
    hours_saved_per_epoch: float
    """At most: what reading, processing and encoding the images of one epoch takes here, without anything beside it."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def estimate_vision(settings: CacheVisionSettings, out: str, *, progress: Progress) -> VisionEstimate:
    """What `cache_vision` with these settings will need in `out`, were it empty. Raises what it would raise, and keeps
    nothing."""
    require_folder(out)
    student = load_student(settings)
    skipped = Skipped(settings.max_skipped)
    samples = load_samples(settings.data)[: settings.limit]
    images = find_images(samples, settings, skipped, progress)
    first = np.array(list(images.places.values()))
    evenly = np.linspace(0, len(first) - 1, min(NUM_TIMED, len(first))).round().astype(int)
    chosen = chosen_samples(samples, first[evenly])
    progress.start("tower", total=len(chosen))
    with tempfile.TemporaryDirectory() as folder:
        with open_vision_writer(settings, f"{folder}/cache", student) as writer:
            start_s = time.perf_counter()  # opening the writer has run the tower once
            num_written = encode_all(chosen, student, writer, skipped, settings, progress)
            writer.complete()
            seconds = (time.perf_counter() - start_s) / max(num_written, 1)
        progress.finish()
        bytes_per_image = round(open_cache(f"{folder}/cache").manifest.counts.size_bytes / max(num_written, 1))
    target = Path(out).absolute()
    existing = next(path for path in (target, *target.parents) if path.exists())
    return VisionEstimate(
        num_samples=images.num_samples,
        num_images=len(first),
        num_timed=num_written,
        bytes_per_image=bytes_per_image,
        total_bytes=bytes_per_image * len(first),
        free_bytes=shutil.disk_usage(existing).free,
        seconds_per_image=seconds,
        hours=seconds * len(first) / 3600,
        hours_saved_per_epoch=seconds * images.num_samples / 3600,
    )

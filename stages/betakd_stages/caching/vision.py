"""A frozen vision tower run once over every distinct image of a sample set. Interrupted, the same call resumes.

A row is known by the sha256 of its image, so samples share it, and a cache may get the images of further sample sets.
Several processes may share the work: an image belongs to the part that its sha256 says, wherever it is used.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from betakd_cache import (
    CacheWriter,
    FeatureLayout,
    TeacherRecord,
    info,
    record_without_tokens,
    rules_without_tokens,
)
from betakd_stages.caching.batching import PreparedSample, prepared_windows
from betakd_stages.caching.distinct_images import DistinctImages, Skipped, distinct_images
from betakd_stages.caching.kinds import TOWER, require_folder
from betakd_stages.data import load_samples
from betakd_stages.data.sample import LazySamples, Sample, Turn, chosen_samples
from betakd_stages.errors import ConfigError, DataError
from betakd_stages.feature_layouts import TOKENS
from betakd_stages.models.loading import LoadedModel, load_encoder, load_model
from betakd_stages.models.tower_rows import require_rows, tower_identity, tower_rows
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheVisionSettings

FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class VisionSummary:
    """What a call left behind: `num_new` and `num_skipped` are its own, all else the whole cache's.

    The cache is not complete while other parts of it are being written.
    """

    is_complete: bool
    num_images: int
    num_new: int
    num_skipped: int
    size_bytes: int


def cache_vision(
    settings: CacheVisionSettings,
    out: str,
    *,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    progress: Progress,
) -> VisionSummary:
    """Encode every image of this part that `out` does not hold yet; the last part completes the cache.

    Raises ModelError for a student whose tower's output is not in one place, DataError where the data have no image and
    where more than `settings.max_skipped` images cannot be had, CacheError where `out` holds something else.
    """
    require_folder(out)
    student = load_student(settings)
    skipped = Skipped(settings.max_skipped)
    with open_vision_writer(settings, out, student, part=part, overwrite=overwrite) as writer:
        samples = load_samples(settings.data)[: settings.limit]
        images = find_images(samples, settings, skipped, progress)
        own = {sha256: place for sha256, place in images.places.items() if is_of_part(sha256, part)}
        missing = [place for sha256, place in own.items() if sha256 not in writer.stored]
        progress.start(TOWER, total=len(own), done=len(own) - len(missing))
        try:
            num_new = encode_all(chosen_samples(samples, missing), student, writer, skipped, settings, progress)
        finally:
            writer.flush()
            progress.finish()
        is_complete = writer.complete()
    counts = info(out).counts
    return VisionSummary(is_complete, counts.num_samples, num_new, skipped.count, counts.size_bytes)


def load_student(settings: CacheVisionSettings) -> LoadedModel:
    """The student, in fp32 whatever it computes in: its weights are part of the cache's identity."""
    require_rows(load_encoder(settings.student))
    student = load_model(settings.student)
    student.model.eval().requires_grad_(False)
    return student


def find_images(
    samples: Sequence[Sample], settings: CacheVisionSettings, skipped: Skipped, progress: Progress
) -> DistinctImages:
    """The distinct images of the samples. Raises DataError where there is none."""
    images = distinct_images(samples, skipped, num_threads=settings.preparing_threads, progress=progress)
    if not images.places:
        raise DataError(
            f"no sample of {settings.data!r} has an image that can be read: there is nothing to cache, check the data"
        )
    return images


def is_of_part(sha256: str, part: tuple[int, int]) -> bool:
    """Whether an image belongs to a part (i, n), however many samples have it."""
    return zlib.crc32(sha256.encode()) % part[1] == part[0]


def open_vision_writer(
    settings: CacheVisionSettings,
    out: str,
    student: LoadedModel,
    *,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> CacheWriter:
    """The writer of what this student's tower says. Raises CacheError where `out` holds something else."""
    vision = student.model.config.vision_config
    empty = torch.zeros(1, 3, vision.image_size, vision.image_size, device=student.model.device)
    _, num_patches, width = tower_rows(student.model, empty).shape
    layouts = {TOWER: FeatureLayout(TOKENS, num_patches)}
    return CacheWriter.open_with(
        out,
        vision_identity(settings, student),
        rules_without_tokens({TOWER: width}, layouts, exact=settings.exact),
        shard_samples=settings.shard_images,
        overwrite=overwrite,
        part=part,
    )


def vision_identity(settings: CacheVisionSettings, student: LoadedModel) -> dict[str, Any]:
    """What a vision cache must remember. Not the data: any image that is processed alike belongs in it."""
    how_run = {
        "precision": settings.precision,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    return {
        TOWER: {**tower_identity(student.model), **how_run},
        "image_processor": student.encoder.identity()["image_processor"],
    }


def encode_all(
    samples: Sequence[Sample],
    student: LoadedModel,
    writer: CacheWriter,
    skipped: Skipped,
    settings: CacheVisionSettings,
    progress: Progress,
) -> int:
    """How many rows went to the writer, of the images of these samples.

    While the tower runs, the next images are prepared and the ones before are written, each in threads of its own.
    """
    encoders = [student.encoder, *(load_encoder(settings.student) for _ in range(settings.preparing_threads - 1))]
    alone = LazySamples(lambda place: _image_alone(samples[place]), range(len(samples)))
    windows = prepared_windows(alone, encoders, settings.batch_size)
    num_new = 0
    stored: Future[None] | None = None
    with contextlib.closing(windows), ThreadPoolExecutor(1, thread_name_prefix="store") as storing:
        for window in windows:
            records = _encode_window(window, student, skipped, settings)
            if stored is not None:
                stored.result()
            stored = storing.submit(writer.extend, records)
            num_new += len(records)
            progress.advance(len(window))
        if stored is not None:
            stored.result()
    return num_new


def _image_alone(sample: Sample) -> Sample:
    """The sample with a text that every student takes: what is wrong with its own must not cost others the image."""
    return dataclasses.replace(sample, turns=(Turn("What is this?", "This."),))


def _encode_window(
    window: Sequence[PreparedSample], student: LoadedModel, skipped: Skipped, settings: CacheVisionSettings
) -> list[TeacherRecord]:
    for prepared in window:
        if prepared.encoded is None:
            skipped.add(prepared.sample.sample_id, prepared.reason)
    encoded = [prepared.encoded for prepared in window if prepared.encoded is not None]
    if not encoded:
        return []
    pixels = torch.cat([sample.image_inputs["pixel_values"] for sample in encoded])
    rows = _run_tower(student, pixels, settings.precision)
    largest = torch.finfo(torch.float32).max if settings.exact else FLOAT16_MAX
    records = []
    for sample, row, peak in zip(encoded, rows, rows.abs().amax(dim=(1, 2)).tolist(), strict=True):
        if not peak <= largest:  # a NaN is not smaller either
            skipped.add(sample.sample_id, f"the tower's numbers reach {peak:g}, more than {largest:g}: try --exact")
            continue
        assert sample.image_sha256 is not None
        records.append(record_without_tokens(sample.image_sha256, {TOWER: row.numpy()}, {"sample": sample.sample_id}))
    return records


def _run_tower(student: LoadedModel, pixels: torch.Tensor, precision: str) -> torch.Tensor:
    """The rows float32 [I, P, D] on the CPU. Raises ConfigError where they are too much for the device's memory."""
    device = student.model.device
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return tower_rows(student.model, pixels.to(device)).float().cpu()
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"the GPU's memory does not hold {len(pixels)} images in the tower: lower batch_size, or use precision bf16"
        ) from None

"""What a run of stage one will cost, from scoring a few samples with the real teacher and the real writer."""

import dataclasses
import math
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from betakd_cache import TeacherCache, open_cache
from betakd_cache.journal import journal_paths, read_journal
from betakd_stages.caching.batching import WINDOWS_AHEAD
from betakd_stages.caching.run import open_writer, preparing_encoders, score_all
from betakd_stages.data import load_samples
from betakd_stages.data.asked import samples_for
from betakd_stages.errors import ConfigError
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.opening import open_teacher

GROUPS = {
    "entries": ("ids", "ids_high", "gap", "gap_top", "tok_n", "entry_ptr"),
    "tail": ("tail_lse", "tail_energy"),
    "moments": ("logit_max", "logit_mean", "logit_std"),
    "features": ("features", "scales", "present", "vision_focus"),
    "tokens": ("token_ids", "token_ids_high", "gold_gap", "sample_ptr"),
}
"""The arrays of a shard by what they are for; beside them stand `rows` (Parquet) and `metadata` (Zarr)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of caching `num_samples` samples, by that of `num_scored` of them, taken evenly over the set."""

    num_scored: int
    num_samples: int
    tokens_per_sample: float
    bytes_per_token: dict[str, float]
    bytes_per_sample: dict[str, float]
    """By group; Zarr's metadata are written once per shard."""
    features_dominate: bool
    """Whether features take more than all numbers about tokens: answers are short, a smaller top_k saves little."""
    total_bytes: int
    seconds_per_sample: float
    hours: float
    """Of one process, without loading the teacher."""
    num_parts: int
    """The fields below are of parts that processes with a GPU each write at the same time."""
    samples_per_part: int
    bytes_per_part: int
    hours_per_part: float
    """Opening the data and the teacher included: from start to end, where all parts run at once."""
    peak_memory_bytes: int
    """Of this process, with whole windows of samples prepared and a whole shard of records pending."""
    peak_device_memory_bytes: int | None
    """Of the fullest GPU, None where there is none."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def estimate(
    settings: CacheTeacherSettings, *, num_scored: int = 32, num_parts: int = 1, progress: Progress
) -> Estimate:
    """What `cache_teacher` with these settings will need. Raises what it would raise, and keeps nothing."""
    if num_scored < 1:
        raise ConfigError(f"{num_scored} samples to score: expected at least 1")
    start_s = time.perf_counter()
    samples = load_samples(settings.data)
    wanted = samples_for(samples[: settings.limit], settings.targets)
    places = np.linspace(0, len(wanted) - 1, min(num_scored, len(wanted))).round().astype(int)
    chosen = [wanted[place] for place in places.tolist()]
    teacher = open_teacher(settings)
    loading_s = time.perf_counter() - start_s
    encoders = preparing_encoders(settings, teacher)
    first = teacher.encoder.encode(chosen[0])
    teacher.score([first])  # the first call prepares kernels and memory
    window_bytes = first.num_bytes * settings.batch_size * settings.bucket_window * (1 + WINDOWS_AHEAD)
    progress.start("teacher", total=len(chosen))
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        with open_writer(settings, Path(folder) / "cache", teacher, samples) as writer:
            loading_s += time.perf_counter() - start_s  # the fingerprint of the data takes a pass over them
            start_s = time.perf_counter()
            score_all(chosen, teacher, encoders, writer, settings, progress)
            writer.flush()
            seconds = time.perf_counter() - start_s
            writer.complete()
        progress.finish()
        work = Work(len(wanted), num_parts, loading_s, seconds, window_bytes)
        return _extrapolate(open_cache(Path(folder) / "cache"), settings, work)


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do, and what the samples that were scored took."""

    num_samples: int
    num_parts: int
    loading_s: float
    scoring_s: float
    window_bytes: int


def _extrapolate(cache: TeacherCache, settings: CacheTeacherSettings, work: Work) -> Estimate:
    """The estimate of the whole work, from the cache of the samples that were scored."""
    num_samples = work.num_samples
    num_scored = len(cache)
    shard_samples = min(settings.shard_samples, cache.manifest.rules.max_shard_samples)
    samples_per_part = math.ceil(num_samples / work.num_parts)
    num_shards = work.num_parts * math.ceil(samples_per_part / shard_samples)
    sizes = _bytes_by_group(cache)
    num_shards_scored = len(cache.shard_ranges())
    per_sample = {name: size / num_scored for name, size in sizes.items() if name != "metadata"}
    per_sample["metadata"] = sizes["metadata"] / num_shards_scored * num_shards / num_samples
    tokens = cache.manifest.counts.num_tokens / num_scored
    whole = sum(per_sample.values())
    seconds_per_sample = work.scoring_s / num_scored
    pending_bytes = _record_bytes(cache) / num_scored * min(shard_samples, samples_per_part)
    peaks = [torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
    return Estimate(
        num_scored=num_scored,
        num_samples=num_samples,
        tokens_per_sample=tokens,
        bytes_per_token={name: size / tokens for name, size in per_sample.items()} | {"all": whole / tokens},
        bytes_per_sample=per_sample | {"all": whole},
        features_dominate=per_sample["features"] > sum(per_sample[name] for name in GROUPS if name != "features"),
        total_bytes=round(whole * num_samples),
        seconds_per_sample=seconds_per_sample,
        hours=seconds_per_sample * num_samples / 3600,
        num_parts=work.num_parts,
        samples_per_part=samples_per_part,
        bytes_per_part=round(whole * samples_per_part),
        hours_per_part=(work.loading_s + seconds_per_sample * samples_per_part) / 3600,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        + round(pending_bytes)
        + work.window_bytes,
        peak_device_memory_bytes=max(peaks, default=None),
    )


def _bytes_by_group(cache: TeacherCache) -> dict[str, int]:
    """The sizes of the files of a local cache's shards."""
    groups = {array: group for group, arrays in GROUPS.items() for array in arrays}
    sizes = dict.fromkeys((*GROUPS, "rows", "metadata"), 0)
    for journal in journal_paths(cache.path):
        for entry in read_journal(journal).shards:
            for name, (size_bytes, _) in entry.files.items():
                if name.endswith(".parquet"):
                    sizes["rows"] += size_bytes
                elif name.endswith("zarr.json"):
                    sizes["metadata"] += size_bytes
                else:
                    sizes[groups[name.split("/")[1]]] += size_bytes
    return sizes


def _record_bytes(cache: TeacherCache) -> int:
    """What the records of a cache take in memory while they wait for their shard."""
    num_bytes = 0
    for index in range(len(cache)):
        record = cache.record(index)
        arrays: list[Any] = [getattr(record, field.name) for field in dataclasses.fields(record)]
        arrays += record.features.values()
        num_bytes += sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    return num_bytes

"""Stage one: run a teacher once over a sample set and write its cache. Interrupted, the same call resumes.

Several processes may share the work, each with a part (i, n). Samples are dealt by position, i::n: the parts are equal
to a sample, a wider limit moves none from one part to another, and the manifest binds the order by its fingerprint.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_cache import CacheWriter, TeacherRecord, TokenRule, info
from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample, SampleSet, chosen_samples
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.errors import DataError
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.hf import HuggingFaceTeacher, Scored


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """What a call of stage one left behind: `num_new` are this call's own, all else the whole cache's.

    The cache is not complete while other parts of it are being written.
    """

    is_complete: bool
    num_samples: int
    num_new: int
    num_rejected: int
    num_tokens: int
    size_bytes: int


def cache_teacher(
    settings: CacheTeacherSettings,
    out: Path | str,
    *,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    progress: Progress,
) -> CacheSummary:
    """Score every sample of this part that `out` does not hold yet; the last part completes the cache.

    Raises DataError where more than `settings.max_rejected` samples fail; what was scored by then is kept.
    """
    samples = load_samples(settings.data)
    loaded = load_model(settings.teacher, settings.precision, settings.max_length)
    teacher = make_teacher(settings, loaded)
    with open_writer(settings, out, teacher, samples, part=part, overwrite=overwrite) as writer:
        wanted = samples[: settings.limit][part[0] :: part[1]]
        stored = writer.stored
        missing = chosen_samples(
            wanted, [number for number, sample in enumerate(wanted) if sample.sample_id not in stored]
        )
        progress.start("teacher", total=len(wanted), done=len(wanted) - len(missing))
        try:
            num_new = score_all(missing, teacher, loaded.encoder, writer, settings, progress)
        finally:
            writer.flush()
            progress.finish()
        is_complete = writer.complete()
    counts = info(out).counts
    return CacheSummary(
        is_complete=is_complete,
        num_samples=counts.num_samples,
        num_new=num_new,
        num_rejected=counts.num_rejected,
        num_tokens=counts.num_tokens,
        size_bytes=counts.size_bytes,
    )


def token_rule(settings: CacheTeacherSettings) -> TokenRule:
    """Which entries of a token these settings keep. Raises CacheError for a rule that no cache can have."""
    return TokenRule(
        top_k=settings.top_k,
        top_p=settings.top_p,
        top_p_temperature=settings.top_p_temperature,
        temperatures=settings.temperatures,
        exact=settings.exact,
    )


def make_teacher(settings: CacheTeacherSettings, loaded: LoadedModel) -> HuggingFaceTeacher:
    """The teacher with the rule and the features of these settings."""
    return HuggingFaceTeacher(loaded, token_rule(settings), settings.features, settings.vision_focus)


def open_writer(
    settings: CacheTeacherSettings,
    out: Path | str,
    teacher: HuggingFaceTeacher,
    samples: SampleSet,
    *,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> CacheWriter:
    """The writer of what this teacher says about these samples. Raises CacheError where `out` holds something else."""
    return CacheWriter.open(
        out,
        identity={**teacher.identity(), "data": data_identity(samples)},
        token_rule=token_rule(settings),
        vocabulary_size=teacher.vocabulary_size,
        feature_sizes=teacher.feature_sizes,
        feature_layouts=teacher.feature_layouts,
        feature_dtype=settings.feature_dtype,
        shard_samples=settings.shard_samples,
        overwrite=overwrite,
        part=part,
    )


def data_identity(samples: SampleSet) -> dict[str, Any]:
    """What a cache remembers of the data it was made from."""
    return {"specification": samples.specification, "fingerprint": samples.fingerprint, "num_samples": len(samples)}


def score_all(
    missing: Sequence[Sample],
    teacher: HuggingFaceTeacher,
    encoder: Encoder,
    writer: CacheWriter,
    settings: CacheTeacherSettings,
    progress: Progress,
) -> int:
    """How many records went to the writer. Raises DataError where too many samples cannot be scored."""
    num_new = num_rejected = 0

    def reject(sample_id: str, reason: str) -> None:
        nonlocal num_rejected
        num_rejected += 1
        if num_rejected > settings.max_rejected:
            raise DataError(
                f"sample {sample_id}: {reason}. Mend it and run the same command again, or let "
                f"--set max_rejected=N record and skip up to N such samples (now {settings.max_rejected})"
            )
        writer.reject(sample_id, reason)

    for batch in _batches(missing, settings.batch_size):
        encoded: list[EncodedSample] = []
        for sample in batch:
            try:
                encoded.append(encoder.encode(sample))
            except DataError as error:
                reject(sample.sample_id, str(error))
        scored = teacher.score(encoded) if encoded else Scored([], {})
        by_id = {sample.sample_id: sample for sample in batch}
        writer.extend([_with_row(record, by_id[record.sample_id]) for record in scored.records])
        num_new += len(scored.records)
        for sample_id, reason in scored.rejected.items():
            reject(sample_id, reason)
        progress.advance(len(batch))
    return num_new


def _with_row(record: TeacherRecord, sample: Sample) -> TeacherRecord:
    """The record with the sample's text hash and category in its Parquet row."""
    row = {**record.row, "content_sha256": sample.content_sha256(), "category": sample.category}
    return dataclasses.replace(record, row=row)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]

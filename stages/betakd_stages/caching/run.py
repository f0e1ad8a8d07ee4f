"""Stage one: run a teacher once over a sample set and write its cache. Interrupted, the same call resumes.

Several processes may share the work, each with a part (i, n). Samples are dealt by position, i::n: the parts are equal
to a sample, a wider limit moves none from one part to another, and the manifest binds the order by its fingerprint.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_cache import CacheWriter, TeacherRecord, info
from betakd_stages.caching.batching import PreparedSample, length_buckets, prepared_windows
from betakd_stages.caching.grounding import check_grounding
from betakd_stages.caching.sessions import noted_session
from betakd_stages.caching.written_rows import count_written
from betakd_stages.data import load_samples
from betakd_stages.data.asked import samples_for
from betakd_stages.data.sample import Sample, SampleSet, chosen_samples
from betakd_stages.encoding import Encoder
from betakd_stages.errors import DataError
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.base import Scored, Teacher
from betakd_stages.teachers.opening import open_teacher
from betakd_stages.teachers.writing import AnswerWriter, Filled


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
    num_generated: int
    """Records of answers that the teacher wrote; of `num_samples`, which counts a sample once for each target."""
    num_cut_answers: int
    """Answers among them that `max_new_tokens` or the context cut off."""


def cache_teacher(
    settings: CacheTeacherSettings,
    out: Path | str,
    *,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    progress: Progress,
) -> CacheSummary:
    """Score every sample of this part that `out` does not hold yet; the last part completes the cache.

    Each target of the settings has a record of its own; answers that the teacher writes are written just before.
    Raises DataError where more than `settings.max_rejected` samples fail; all before the one too many is kept. Raises
    ModelError where the teacher hardly looks at images and `settings.require_grounding` says to stop then.
    """
    samples = load_samples(settings.data)
    with (
        contextlib.closing(open_teacher(settings)) as teacher,
        open_writer(settings, out, teacher, samples, part=part, overwrite=overwrite) as writer,
    ):
        own = samples[: settings.limit][part[0] :: part[1]]
        wanted, stored = samples_for(own, settings.targets), writer.stored
        places = [place for place, sample in enumerate(wanted) if sample.sample_id not in stored]
        missing = chosen_samples(wanted, places)
        if missing and part[0] == 0:
            with_data_answers = chosen_samples(own, sorted({place % len(own) for place in places}))
            check_grounding(teacher, with_data_answers, required=settings.require_grounding)
        encoders = preparing_encoders(settings, teacher)
        progress.start("teacher", total=len(wanted), done=len(wanted) - len(missing))
        try:
            is_first = part == (0, 1) and not stored
            with noted_session(out, part, is_first=is_first) if missing else contextlib.nullcontext():
                num_new = score_all(missing, teacher, encoders, writer, settings, progress)
        finally:
            writer.flush()
            progress.finish()
        is_complete = writer.complete()
    return summary(out, is_complete, num_new)


def summary(out: Path | str, is_complete: bool, num_new: int) -> CacheSummary:
    """The summary of the cache at `out` after a call that added `num_new` records."""
    counts, written = info(out).counts, count_written(out)
    return CacheSummary(
        is_complete=is_complete,
        num_samples=counts.num_samples,
        num_new=num_new,
        num_rejected=counts.num_rejected,
        num_tokens=counts.num_tokens,
        size_bytes=counts.size_bytes,
        num_generated=written.num_generated,
        num_cut_answers=written.num_cut_answers,
    )


def preparing_encoders(settings: CacheTeacherSettings, teacher: Teacher) -> list[Encoder]:
    """One encoder for each thread that prepares samples."""
    others = range(settings.preparing_threads - 1)
    return [teacher.encoder, *(load_encoder(settings.teacher, teacher.encoder.max_length) for _ in others)]


def open_writer(
    settings: CacheTeacherSettings,
    out: Path | str,
    teacher: Teacher,
    samples: SampleSet,
    *,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> CacheWriter:
    """The writer of what this teacher says about these samples. Raises CacheError where `out` holds something else."""
    return CacheWriter.open(
        out,
        identity={**teacher.identity(), "data": data_identity(samples), **targets_identity(settings)},
        token_rule=teacher.token_rule,
        vocabulary_size=teacher.vocabulary_size,
        feature_sizes=teacher.feature_sizes,
        feature_layouts=teacher.feature_layouts,
        feature_dtype=settings.feature_dtype,
        logit_moments=teacher.knows_logits,
        tail_energies=teacher.knows_logits,
        shard_samples=settings.shard_samples,
        overwrite=overwrite,
        part=part,
    )


def data_identity(samples: SampleSet) -> dict[str, Any]:
    """What a cache remembers of the data it was made from."""
    return {"specification": samples.specification, "fingerprint": samples.fingerprint, "num_samples": len(samples)}


def targets_identity(settings: CacheTeacherSettings) -> dict[str, Any]:
    """What a cache remembers of its targets and of all that written answers depend on.

    Nothing where they are the data's answers alone: caches from before there were others keep their identity.
    """
    if settings.targets == ("data",):
        return {}
    only_sampled = set() if settings.generation.temperature else {"top_p", "seed"}
    fields = settings.generation.model_dump(exclude=only_sampled) | {"max_length": settings.max_length}
    return {"targets": {"kinds": list(settings.targets), "generation": fields}}


def score_all(
    missing: Sequence[Sample],
    teacher: Teacher,
    encoders: Sequence[Encoder],
    writer: CacheWriter,
    settings: CacheTeacherSettings,
    progress: Progress,
) -> int:
    """How many records went to the writer. Raises DataError where too many samples cannot be scored.

    Where a sample's answers are open the teacher writes them first. While a window of samples is scored, the next is
    prepared and the one before is written, each in threads of its own.
    """
    store = _Store(writer, settings.max_rejected)
    answers = AnswerWriter(teacher, encoders[0], settings.generation) if "generate" in settings.targets else None
    stored: Future[None] | None = None
    windows = prepared_windows(missing, encoders, settings.batch_size * settings.bucket_window)
    with contextlib.closing(windows), ThreadPoolExecutor(1, thread_name_prefix="store") as storing:
        for window in windows:
            outcomes = _score_window(window, teacher, answers, settings, progress)
            if stored is not None:
                stored.result()
            stored = storing.submit(store.keep, outcomes)
        if stored is not None:
            stored.result()
    return store.num_new


def _score_window(
    window: list[PreparedSample],
    teacher: Teacher,
    answers: AnswerWriter | None,
    settings: CacheTeacherSettings,
    progress: Progress,
) -> list[tuple[Sample, TeacherRecord | str]]:
    """What became of each sample, in order: its record, or the reason why there is none; none past one too many."""
    failed = [place for place, sample in enumerate(window) if sample.encoded is None]
    if len(failed) > settings.max_rejected:
        window = window[: failed[settings.max_rejected] + 1]
    encoded = [sample.encoded for sample in window if sample.encoded is not None]
    outcomes: dict[str, TeacherRecord | str] = {}
    batch_size = max(len(encoded), 1) if teacher.batches_itself else settings.batch_size
    for bucket in length_buckets([len(sample.input_ids) for sample in encoded], batch_size):
        filled = Filled([encoded[place] for place in bucket], {}, {})
        if answers is not None:
            filled = answers.fill(filled.batch)
        scored = teacher.score(filled.batch) if filled.batch else Scored([], {})
        for record in scored.records:
            row = {**record.row, **filled.columns.get(record.sample_id, {})}
            outcomes[record.sample_id] = dataclasses.replace(record, row=row)
        outcomes |= {**scored.rejected, **filled.rejected}
        progress.advance(len(bucket))
    progress.advance(len(window) - len(encoded))
    return [(prepared.sample, outcomes.get(prepared.sample.sample_id, prepared.reason)) for prepared in window]


class _Store:
    """Where outcomes go: records into the writer, reasons into its list of rejected samples, up to a limit."""

    def __init__(self, writer: CacheWriter, max_rejected: int) -> None:
        self._writer, self._max_rejected = writer, max_rejected
        self.num_new = self.num_rejected = 0

    def keep(self, outcomes: Sequence[tuple[Sample, TeacherRecord | str]]) -> None:
        """Store outcomes in their order. Raises DataError at the first rejected sample that is one too many."""
        records: list[TeacherRecord] = []
        for sample, outcome in outcomes:
            if isinstance(outcome, TeacherRecord):
                records.append(_with_row(outcome, sample))
                continue
            self._extend(records)
            records = []
            self._reject(sample.sample_id, outcome)
        self._extend(records)

    def _extend(self, records: Sequence[TeacherRecord]) -> None:
        self._writer.extend(records)
        self.num_new += len(records)

    def _reject(self, sample_id: str, reason: str) -> None:
        self.num_rejected += 1
        if self.num_rejected > self._max_rejected:
            raise DataError(
                f"sample {sample_id}: {reason}. Mend it and run the same command again, or let "
                f"--set max_rejected=N record and skip up to N such samples (now {self._max_rejected})"
            )
        self._writer.reject(sample_id, reason)


def _with_row(record: TeacherRecord, sample: Sample) -> TeacherRecord:
    """The record with the sample's text hash and category in its Parquet row."""
    row = {**record.row, "content_sha256": sample.content_sha256(), "category": sample.category}
    return dataclasses.replace(record, row=row)

"""Whether a cache belongs to what the student sees: same tokenizer, prompts, samples, answers and images.

The text is compared for every sample before training starts; images are compared when they are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from betakd_cache import TeacherCache
from betakd_stages.caching.kinds import require_of_teacher
from betakd_stages.caching.written_rows import targets_of
from betakd_stages.data.asked import asked_samples
from betakd_stages.data.sample import Sample, SampleSet, chosen_samples
from betakd_stages.distillation.cached_answers import CHUNK_SAMPLES, CachedAnswers, read_answers
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.encoding.written import with_answers
from betakd_stages.errors import DataError, MismatchError

TARGETS = {"data": "data", "generated": "generate"}
"""What stage one calls the answers that stage two asks for."""


@dataclass(frozen=True, slots=True)
class MatchedSamples:
    """The samples a student can learn from the cache, and where the cache holds them.

    Where the answers are those that the teacher wrote, the samples' own are open (`data.asked`).
    """

    samples: Sequence[Sample]
    cache_indices: NDArray[np.int64]  # [S]
    image_sha256: Sequence[str | None] | None  # [S], as the teacher saw them; None where no teacher did
    num_dropped: int
    answers: CachedAnswers | None = None


def match_cache(
    cache: TeacherCache,
    samples: SampleSet,
    encoder: Encoder,
    on_mismatch: str,
    *,
    own_prompts: bool = False,
    targets: str = "data",
) -> MatchedSamples:
    """The samples that cache and student agree on, with the data's answers or ("generated") those the teacher wrote.

    Raises MismatchError for another tokenizer, a vision cache and a cache without such answers, always; for another
    prompt template, unless `own_prompts` says that the student may have its own; for a sample that the cache lacks,
    whose text or answer tokens differ or that the student cannot take, unless `on_mismatch` is "drop".
    """
    _check_encoder(cache, encoder, own_prompts)
    _check_targets(cache, targets)
    if targets == "generated":
        samples = SampleSet(samples.specification, asked_samples(samples))
    known = set(cache.sample_ids.to_pylist())
    reasons = {
        sample.sample_id: _why_missing(cache, sample.sample_id) for sample in samples if sample.sample_id not in known
    }
    present = chosen_samples(
        samples, [number for number, sample in enumerate(samples) if sample.sample_id not in reasons]
    )
    indices = cache.index_of([sample.sample_id for sample in present])
    rows = cache.rows(["content_sha256", "image_sha256"])
    content, images = rows.column("content_sha256").to_pylist(), rows.column("image_sha256").to_pylist()
    for sample, index in zip(present, indices, strict=True):
        if sample.content_sha256() != content[index]:
            reasons[sample.sample_id] = "its question or answer differs from what the teacher was given"
    answers = read_answers(cache, indices) if targets == "generated" else None
    if answers is None:
        _compare_answers(present, cache, indices, encoder, reasons)
    else:
        _check_fit(present, answers, encoder, reasons)
    if reasons and on_mismatch == "stop":
        _refuse(cache, samples, reasons)
    agreed = [number for number, sample in enumerate(present) if sample.sample_id not in reasons]
    if not agreed:
        raise MismatchError(f"no sample of {samples.specification!r} is in the cache as the student sees it")
    return MatchedSamples(
        chosen_samples(present, agreed),
        np.asarray(indices)[agreed],
        [images[indices[number]] for number in agreed],
        len(reasons),
        answers.chosen(agreed) if answers else None,
    )


def _refuse(cache: TeacherCache, samples: SampleSet, reasons: Mapping[str, str]) -> NoReturn:
    first = next(sample.sample_id for sample in samples if sample.sample_id in reasons)
    raise MismatchError(
        f"sample {first!r}: {reasons[first]} ({len(reasons)} of {len(samples)} samples differ; {cache.location} was "
        f"made from {cache.manifest.identity['data']['specification']!r}). Give the data the cache was made from, "
        "or drop what differs (on_mismatch: drop)"
    )


def _why_missing(cache: TeacherCache, sample_id: str) -> str:
    if sample_id in cache.rejected:
        return f"the teacher's run rejected it ({cache.rejected[sample_id]})"
    return "the cache holds no such sample"


def _check_encoder(cache: TeacherCache, encoder: Encoder, own_prompts: bool) -> None:
    require_of_teacher(cache)
    own: dict[str, Any] = encoder.identity()
    remedies = {
        "tokenizer": "use a student with the teacher's tokenizer, or run the teacher again with another",
        "prompt": "give the student the teacher's chat template, run the teacher again, or allow it (prompts: own)",
    }
    if own_prompts:
        del remedies["prompt"]
    for part, remedy in remedies.items():
        for key, found in cache.manifest.identity[part].items():
            if own[part][key] != found:
                raise MismatchError(
                    f"the student's {part} is not the one of the cache ({key}: {own[part][key]} against {found}): "
                    + remedy
                )


def _check_targets(cache: TeacherCache, targets: str) -> None:
    held = targets_of(cache.manifest)
    if TARGETS[targets] in held:
        return
    if targets == "generated":
        raise MismatchError(
            f"{cache.location} holds the data's answers only, asked for are those that the teacher writes: run "
            "cache-teacher with --targets generate (or data,generate), or distil with --targets data"
        )
    raise MismatchError(
        f"{cache.location} holds only answers that the teacher wrote, asked for are the data's: distil with --targets "
        "generated, or run cache-teacher with --targets data (or data,generate)"
    )


def _compare_answers(
    samples: Sequence[Sample],
    cache: TeacherCache,
    indices: NDArray[np.int64],
    encoder: Encoder,
    reasons: dict[str, str],
) -> None:
    """Add to the reasons those samples whose answer tokens are not those of the cache."""
    for start in range(0, len(samples), CHUNK_SAMPLES):
        batch = cache.batch(indices[start : start + CHUNK_SAMPLES])
        cached = np.split(batch.token_ids(), batch.token_ptr[1:-1])
        for sample, answer in zip(samples[start : start + CHUNK_SAMPLES], cached, strict=True):
            if sample.sample_id in reasons:
                continue
            try:
                own = encoder.answer_ids(sample).numpy()
            except DataError as error:
                reasons[sample.sample_id] = str(error)
                continue
            if not np.array_equal(own, answer):
                reasons[sample.sample_id] = (
                    f"its answer is tokens {own.tolist()} here and {answer.tolist()} in the cache"
                )


def _check_fit(samples: Sequence[Sample], answers: CachedAnswers, encoder: Encoder, reasons: dict[str, str]) -> None:
    """Add to the reasons those samples that the student cannot take with the answers that the teacher wrote."""
    for place, sample in enumerate(samples):
        if sample.sample_id in reasons:
            continue
        try:
            text = EncodedSample(sample.sample_id, *encoder.encode_text(sample), {}, {}, None)
            encoder.require_length(sample.sample_id, len(with_answers(text, answers[place]).input_ids))
        except DataError as error:
            reasons[sample.sample_id] = str(error)

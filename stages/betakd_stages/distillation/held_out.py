"""How far the student is from the teacher on held-out samples, as far as a cache knows what the teacher says of them.

B samples, N supervised tokens of a batch, M kept entries of all tokens, V vocabulary, D hidden size.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from betakd_cache import Manifest, TeacherCache
from betakd_stages.data import load_samples
from betakd_stages.data.asked import asked_samples
from betakd_stages.data.sample import SampleSet
from betakd_stages.distillation.cached_targets import decode_batch
from betakd_stages.distillation.dataset import EncodedSamples, make_collator
from betakd_stages.distillation.matching import MatchedSamples, match_cache
from betakd_stages.encoding import Encoder
from betakd_stages.energies import make_energy
from betakd_stages.errors import MismatchError
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import LoadedModel
from betakd_stages.processes import gather_from_processes
from betakd_stages.settings import DistillSettings
from betakd_stages.statistics import Head, student_statistics
from betakd_stages.targets import CHUNK_ELEMENTS, TeacherTargets

AGREEMENT = "validation_agreement"
FORWARD_KL = "validation_forward_kl"

logger = logging.getLogger(__name__)


def held_out_agreement(
    settings: DistillSettings,
    encoder: Encoder,
    cache: TeacherCache | None,
    open_cache: Callable[[DistillSettings, str], TeacherCache],
) -> "TeacherAgreement":
    """What measures a student, as it then is, against the teacher's records of the validation data.

    The records are those of `validation_cache`, or of the run's own `cache`, if it is one, where it holds every one of
    these samples; where neither is so there is nothing to measure.
    Raises MismatchError where a cache that was named is another teacher's, or not of what the student sees.
    """
    if settings.validation is None:
        return TeacherAgreement(None)
    samples = load_samples(settings.validation)
    if settings.validation_cache is not None:
        named = open_cache(settings, settings.validation_cache)
        if cache is not None:
            _require_same_teacher(named, cache)
        cache = named
    elif cache is None or not _holds_all(cache, samples, settings.targets):
        return TeacherAgreement(None)
    own_prompts = settings.prompts == "own"
    matched = match_cache(
        cache, samples, encoder, settings.on_mismatch, own_prompts=own_prompts, targets=settings.targets
    )
    logger.info("agreement with the teacher is measured on %d samples of %s", len(matched.samples), cache.location)
    return TeacherAgreement(HeldOutRecords(cache, matched, encoder), settings.training.batch_size)


class HeldOutRecords:
    """Held-out samples and what a cache says of them."""

    def __init__(self, cache: TeacherCache, matched: MatchedSamples, encoder: Encoder) -> None:
        """Raises DataError or MismatchError where the first image cannot be read or is not what the teacher saw."""
        self.manifest = cache.manifest
        self._dataset = EncodedSamples(matched.samples, encoder, matched.image_sha256, matched.answers)
        self._collate = make_collator(encoder, cache, matched.cache_indices)
        self._dataset[0]

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, batch_size: int, process_index: int, num_processes: int) -> Iterator[dict[str, Any]]:
        """One process's part of the samples."""
        places = range(process_index, len(self._dataset), num_processes)
        for start in range(0, len(places), batch_size):
            yield self._collate([self._dataset[place] for place in places[start : start + batch_size]])


@dataclass(frozen=True, slots=True)
class Measured:
    """A student beside the teacher's records of some samples: B of them, B' with a share. On the CPU."""

    shares: Tensor  # float64 [B'], of a sample's tokens at which both models' most likely token is the same
    divergences: Tensor  # float64 [B], forward KL in nats, the mean over a sample's tokens

    @property
    def means(self) -> tuple[float | None, float]:
        """The mean share over samples in percent, None where no sample has one, and the mean divergence."""
        return 100 * float(self.shares.mean()) if len(self.shares) else None, float(self.divergences.mean())

    @classmethod
    def joined(cls, parts: Sequence["Measured"]) -> "Measured":
        """The parts as one, in order."""
        return cls(torch.cat([part.shares for part in parts]), torch.cat([part.divergences for part in parts]))


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Both models' of the entries that the cache kept of some samples' tokens, float64 `[M]` in nats, on the CPU."""

    teacher: NDArray[np.float64]
    student: NDArray[np.float64]


@torch.inference_mode()
def measure_batch(student: LoadedModel, manifest: Manifest, batch: dict[str, Any]) -> tuple[Measured, LogProbabilities]:
    """The student, teacher-forced over the answers of a batch of `HeldOutRecords`, beside the teacher.

    A token does not count into the shares where the cache lacks the teacher's most likely one (one entry is kept, the
    label).
    """
    model = student.model.eval()
    batch |= {key: value.to(model.device) for key, value in batch.items() if isinstance(value, Tensor)}
    rows = answer_rows(model, batch)
    targets = decode_batch(batch["teacher"], manifest, rows.hidden.device).targets
    embeddings = model.get_output_embeddings()
    head = Head(embeddings.weight, embeddings.bias)
    divergence = make_energy("fkl", "paper")
    statistics = student_statistics(rows.hidden, head, targets, divergence.needs(targets))
    known = targets.logits[:, 0] == 0
    agrees = greedy_tokens(rows.hidden, head, targets) == targets.ids[:, 0]
    measured = Measured(
        shares=_sample_means(agrees[known], targets.sample_index[known]),
        divergences=_sample_means(divergence(statistics, targets), targets.sample_index),
    )
    both = (targets.log_probabilities(), statistics.log_probabilities())
    teacher, own = (values[targets.kept].double().cpu().numpy() for values in both)
    return measured, LogProbabilities(teacher, own)


class TeacherAgreement:
    """Measures a student: its greedy tokens and its distributions against the teacher's. Nothing without records."""

    def __init__(self, records: HeldOutRecords | None, batch_size: int = 1) -> None:
        self._records = records
        self._batch_size = batch_size

    def measure(self, student: LoadedModel, process_index: int = 0, num_processes: int = 1) -> dict[str, float]:
        """The share of supervised tokens, in percent, at which the student's most likely token is the teacher's, and
        the forward KL in nats: means over the tokens of a sample, then over samples.

        Where no token's most likely one is known, the share is left out. Of several processes, all of which have to
        call this, each measures a part, and all get the whole.
        """
        if self._records is None:
            return {}
        batches = self._records.batches(self._batch_size, process_index, num_processes)
        own = [measure_batch(student, self._records.manifest, batch)[0] for batch in batches]
        parts = gather_from_processes(own) if num_processes > 1 else [own]
        share, divergence = Measured.joined([measured for part in parts for measured in part]).means
        found = {FORWARD_KL: divergence}
        return found if share is None else {AGREEMENT: share, **found}


def greedy_tokens(hidden: Tensor, head: Head, targets: TeacherTargets) -> Tensor:
    """The student's most likely token int64 `[N]` at hidden states `[N, D]`; of the tokenizer's, not of padding rows.

    As many rows as have about 2^24 logits go through the head at a time.
    """
    size = targets.vocabulary_size
    bias = None if head.bias is None else head.bias[:size]
    chunks = hidden.split(max(1, CHUNK_ELEMENTS // size))
    return torch.cat([linear(rows, head.weight[:size], bias).argmax(dim=1) for rows in chunks])


def _sample_means(values: Tensor, sample_index: Tensor) -> Tensor:
    """Means float64 `[B']` of values `[N]` over the tokens of each sample that has any, on the CPU."""
    values, sample_index = values.double().cpu(), sample_index.cpu()
    counts = torch.bincount(sample_index)
    sums = torch.bincount(sample_index, weights=values)
    return (sums / counts)[counts > 0]


def _holds_all(cache: TeacherCache, samples: SampleSet, targets: str) -> bool:
    """Whether the cache has a record of each of these samples, with the same questions, answers and image.

    Images are read only where all text agrees.
    """
    wanted = list(asked_samples(samples) if targets == "generated" else samples)
    ids = [sample.sample_id for sample in wanted]
    if not set(ids) <= set(cache.sample_ids.to_pylist()):
        return False
    rows = cache.rows(["content_sha256", "image_sha256"]).take(cache.index_of(ids))
    if rows["content_sha256"].to_pylist() != [sample.content_sha256() for sample in wanted]:
        return False
    return all(
        (sample.image.load().sha256 if sample.image else None) == held
        for sample, held in zip(wanted, rows["image_sha256"].to_pylist(), strict=True)
    )


def _require_same_teacher(named: TeacherCache, cache: TeacherCache) -> None:
    found, expected = (each.manifest.identity.get("teacher", {}).get("weights_sha256") for each in (named, cache))
    if found != expected:
        raise MismatchError(
            f"validation_cache {named.location} is of a teacher with weights {found}, the run's cache of one with "
            f"{expected}: name a cache of the same teacher, or none"
        )

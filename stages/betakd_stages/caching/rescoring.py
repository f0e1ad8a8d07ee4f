"""Auditing a cache against its teacher: some samples are scored again, and compared with what students will read."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from betakd_cache import CompactBatch, TeacherCache, open_cache
from betakd_cache.codec import NUM_WIDE_RANKS, UNITS_PER_NAT, step_table
from betakd_stages.caching.kinds import require_of_teacher
from betakd_stages.caching.written_rows import targets_of
from betakd_stages.data import load_samples
from betakd_stages.data.asked import SUFFIX, is_asked
from betakd_stages.data.sample import SampleSet
from betakd_stages.distillation.cached_targets import decode_batch
from betakd_stages.distillation.dataset import EncodedSamples
from betakd_stages.distillation.matching import match_cache
from betakd_stages.encoding import EncodedSample
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import PRECISIONS, LoadedModel, load_model
from betakd_stages.models.placement import Placement
from betakd_stages.targets import TeacherTargets
from betakd_stages.teachers.hf import HuggingFaceTeacher

ENVIRONMENT = ("backend", "attention", "transformers", "torch")
"""How a teacher was run, not which: a difference is reported, and shows in the figures if it matters."""
NOISE_NATS = {"float32": 1e-3, "bfloat16": 0.25}
"""What a logit may differ by between two runs of one teacher; bfloat16 has steps of 0.125 from 16 on."""
FLOAT16_PRECISION = 2.0**-11


@dataclass(frozen=True, slots=True)
class RescoredTemperature:
    """Cached against fresh log probabilities at one temperature, in nats, over all kept entries.

    `largest_unexplained` is the largest difference beyond the precision of the format at that entry; `bucket_kl` the
    mean over tokens of KL(fresh || cached) between the kept entries and the tail as one bucket.
    """

    temperature: float
    largest_difference: float
    mean_difference: float
    largest_unexplained: float
    bucket_kl: float


@dataclass(frozen=True, slots=True)
class Rescoring:
    """What scoring samples again found. A kept rank is tied where another id stands there whose logit is the same
    within `tolerance`, and disagrees where it is not; a gold id kept at the end in spite of its rank is no rank."""

    cache: str
    teacher: str
    num_samples: int
    num_tokens: int
    num_ranks: int
    id_agreement: float
    num_tied: int
    num_disagreeing: int
    tolerance: float
    temperatures: tuple[RescoredTemperature, ...]
    worst_sample: str
    """The sample with the largest unexplained difference or, before that, one whose ids disagree."""
    changed_environment: Mapping[str, str]
    """How the teacher is run differently from when the cache was written, by name."""

    @property
    def ok(self) -> bool:
        """Whether all ids agree up to ties and all differences are within the tolerance."""
        return self.num_disagreeing == 0 and all(row.largest_unexplained <= self.tolerance for row in self.temperatures)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {"ok": self.ok}


def rescore(
    cache_path: Path | str, teacher: str, data: str, num_samples: int, *, seed: int = 0, tolerance: float | None = None
) -> Rescoring:
    """What `teacher` says today about `num_samples` of the cache (or all there are), drawn by `seed`.

    `tolerance` is in nats; by default it is the noise between two runs of a teacher of the cache's number type.
    Raises MismatchError for a vision cache, another teacher than the cache's and data that it was not made from.
    """
    if num_samples < 1 or (tolerance is not None and not tolerance >= 0):
        raise ConfigError(f"{num_samples} samples, tolerance {tolerance}: expected at least 1, and 0 nats or more")
    cache = open_cache(cache_path)
    require_of_teacher(cache)
    run = cache.manifest.identity.get("teacher", {})
    dtype = str(run.get("dtype"))
    precision = next((name for name, kind in PRECISIONS.items() if str(kind) == f"torch.{dtype}"), "fp32")
    loaded = load_model(teacher, precision, placement=Placement(quantisation=run.get("quantisation", "none")))
    rules = cache.manifest.rules
    # Places in focus need an attention of their own, which the teacher is run with again.
    again = HuggingFaceTeacher(loaded, rules.token_rule, vision_focus=rules.layout("vision").num_focus)
    changed = _check_teacher(cache, teacher, again.identity())
    allowed = NOISE_NATS[dtype] if tolerance is None else tolerance
    compared, scored_ids = [], []
    for targets, samples in _drawn(cache, data, num_samples, seed).items():
        matched = match_cache(cache, samples, loaded.encoder, on_mismatch="stop", targets=targets)
        encoded = EncodedSamples(matched.samples, loaded.encoder, matched.image_sha256, matched.answers)
        for position, index in enumerate(matched.cache_indices):
            compared.append(_compare(cache, cache.batch([index]), _logits(loaded, encoded[position][1]), allowed))
            scored_ids.append(matched.samples[position].sample_id)
    total, same, tied, disagreeing = np.sum([sample.ranks for sample in compared], axis=0).tolist()
    worst = max(range(len(compared)), key=lambda number: compared[number].badness)
    return Rescoring(
        cache=str(cache_path),
        teacher=teacher,
        num_samples=len(compared),
        num_tokens=sum(sample.bucket_kl.shape[1] for sample in compared),
        num_ranks=total,
        id_agreement=same / max(total, 1),
        num_tied=tied,
        num_disagreeing=disagreeing,
        tolerance=allowed,
        temperatures=tuple(
            _summarise(compared, row, temperature)
            for row, temperature in enumerate(cache.manifest.token_rule.temperatures)
        ),
        worst_sample=scored_ids[worst],
        changed_environment=changed,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """One sample of N tokens and E entries at M temperatures."""

    ranks: NDArray[np.int64]  # [4]: all, the same id, tied, disagreeing
    differences: NDArray[np.float64]  # [M, E] nats
    unexplained: NDArray[np.float64]  # [M] nats, the largest
    bucket_kl: NDArray[np.float64]  # [M, N] nats

    @property
    def badness(self) -> tuple[int, float]:
        return int(self.ranks[3]), float(self.unexplained.max())


def _summarise(compared: Sequence[_Compared], row: int, temperature: float) -> RescoredTemperature:
    differences = np.concatenate([sample.differences[row] for sample in compared])
    return RescoredTemperature(
        temperature=temperature,
        largest_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        largest_unexplained=max(float(sample.unexplained[row]) for sample in compared),
        bucket_kl=float(np.concatenate([sample.bucket_kl[row] for sample in compared]).mean()),
    )


def _check_teacher(cache: TeacherCache, teacher: str, own: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """How the teacher is run differently; raises MismatchError where it, or how it encodes, is another."""
    changed = {}
    for part in ("teacher", "tokenizer", "prompt", "image_processor"):
        held = cache.manifest.identity.get(part, {})
        for key, found in own[part].items():
            if held.get(key) == found:
                continue
            if key not in ENVIRONMENT:
                raise MismatchError(
                    f"{teacher} is not the teacher of {cache.path} ({part}.{key}: {found}, the cache has "
                    f"{held.get(key, 'nothing')}): give the teacher that the cache was written with"
                )
            changed[key] = f"{found}, was {held.get(key, 'nothing')}"
    return changed


def _drawn(cache: TeacherCache, data: str, num_samples: int, seed: int) -> dict[str, SampleSet]:
    """Samples of the cache, drawn by `seed`, as `data` has them; by the targets of their records."""
    drawn = np.random.default_rng(seed).choice(len(cache), min(num_samples, len(cache)), replace=False)
    record_ids = cache.sample_ids.take(np.sort(drawn)).to_pylist()
    wanted: dict[str, list[str]] = {}
    for record_id in record_ids:
        is_generated = "generate" in targets_of(cache.manifest) and is_asked(record_id)
        wanted.setdefault("generated" if is_generated else "data", []).append(
            record_id.removesuffix(SUFFIX) if is_generated else record_id
        )
    drawn_ids = set(itertools.chain.from_iterable(wanted.values()))
    by_id = {sample.sample_id: sample for sample in load_samples(data) if sample.sample_id in drawn_ids}
    for sample_id in itertools.chain.from_iterable(wanted.values()):
        if sample_id not in by_id:
            raise MismatchError(
                f"{data} has no sample {sample_id!r}, which {cache.path} holds: give the data the cache was made from, "
                f"{cache.manifest.identity['data']['specification']}"
            )
    return {targets: SampleSet(data, [by_id[sample_id] for sample_id in ids]) for targets, ids in wanted.items()}


@torch.inference_mode()
def _logits(loaded: LoadedModel, encoded: EncodedSample) -> Tensor:
    """The teacher's logits `[N, V]`, float64, relative to the largest of each token."""
    model = loaded.model
    batch = {name: value.to(model.device) for name, value in loaded.encoder.collate([encoded]).items()}
    rows = answer_rows(model, batch)
    logits = model.get_output_embeddings()(rows.hidden)[:, : loaded.encoder.vocabulary_size].double()
    return logits - logits.amax(dim=1, keepdim=True)


def _compare(cache: TeacherCache, batch: CompactBatch, logits: Tensor, tolerance: float) -> _Compared:
    """One sample's cached numbers against fresh logits `[N, V]`."""
    cached = decode_batch(batch, cache.manifest, logits.device).targets
    fresh = logits.gather(1, cached.ids)
    precision, is_limited = (torch.zeros_like(fresh), torch.zeros_like(cached.kept))
    entry_precision, entry_is_limited = _precision(batch)
    precision[cached.kept] = torch.from_numpy(entry_precision).to(logits.device)
    is_limited[cached.kept] = torch.from_numpy(entry_is_limited).to(logits.device)
    stored = torch.where(is_limited, torch.maximum(fresh, cached.logits.double()), fresh)
    others = logits.scatter(1, torch.where(cached.kept, cached.ids, cached.ids[:, :1]), -torch.inf)
    differences, unexplained, bucket_kl = [], [], []
    for temperature in cached.temperatures:
        partition = torch.logsumexp(logits / temperature, dim=1)
        expected, found = stored / temperature - partition[:, None], cached.log_probabilities(temperature).double()
        difference = (found - expected).abs()[cached.kept]
        # An error of the kept gaps moves their own log probabilities and, by its mean, the partition.
        error = precision + (found.exp() * precision).sum(dim=1, keepdim=True)
        differences.append(difference.cpu().numpy())
        unexplained.append((difference - error[cached.kept] / temperature).max().item())
        tail = torch.logsumexp(others / temperature, dim=1) - partition
        kept = fresh / temperature - partition[:, None]
        kept_kl = kept.exp() * (kept - found)
        tail_kl = tail.exp() * (tail - cached.tail_log_probability(temperature).double())
        kl = kept_kl.masked_fill(~cached.kept, 0.0).sum(dim=1) + tail_kl.masked_fill(tail == -torch.inf, 0.0)
        bucket_kl.append(kl.cpu().numpy())
    ranks = _compare_ranks(cached, logits, fresh, tolerance)
    return _Compared(ranks, np.stack(differences), np.array(unexplained), np.stack(bucket_kl))


def _compare_ranks(cached: TeacherTargets, logits: Tensor, fresh: Tensor, tolerance: float) -> NDArray[np.int64]:
    """How many kept ranks there are, hold the same id, are tied, and disagree, `[4]`."""
    best, best_ids = logits.topk(cached.ids.shape[1], dim=1)
    is_last = cached.kept & ~torch.nn.functional.pad(cached.kept, (0, 1))[:, 1:]
    counted = cached.kept & ~(is_last & (cached.ids == cached.gold_ids[:, None]))
    same = counted & (best_ids == cached.ids)
    tied = counted & ~same & ((best - fresh).abs() <= tolerance)
    total, num_same, num_tied = (int(mask.sum()) for mask in (counted, same, tied))
    return np.array([total, num_same, num_tied, total - num_same - num_tied])


def _precision(batch: CompactBatch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How far, in nats, the format may store each kept gap `[E]` from what it was: half a step of its code; and `[E]`
    whether the code is the largest one, so that the gap may have been any larger."""
    codes = batch.arrays["gap"]
    if codes.dtype.kind == "f":
        return np.zeros(len(codes)), np.zeros(len(codes), bool)
    counts = batch.arrays["tok_n"].astype(np.int64)
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_wide = rank <= NUM_WIDE_RANKS
    # A gap that was overshot makes the next steps 0: their errors are at most that of the last step that was none.
    source = np.maximum.accumulate(np.where(is_wide | (codes > 0), np.arange(len(codes)), 0))
    nats = step_table() / UNITS_PER_NAT
    steps = np.diff(nats, append=nats[-1], prepend=nats[0])
    half_steps = np.maximum(steps[1:], steps[:-1]) / 2
    precision = np.where(is_wide[source], 0.5 / UNITS_PER_NAT, half_steps[codes[source]])
    precision = np.where(is_wide, precision, np.maximum(precision, half_steps[0]))
    gold = batch.ids() == np.repeat(batch.token_ids(), counts)
    precision[gold] = batch.float32("gold_gap") * FLOAT16_PRECISION
    return precision, ~gold & (codes == 255)

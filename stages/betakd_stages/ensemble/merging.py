"""`cache merge --mixture`: the mixture of several teachers, mixed once, as a cache like any other."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from betakd_cache import CacheWriter, TeacherCache, TeacherRecord, open_cache
from betakd_cache.layout import RESERVED_COLUMNS, focus_name
from betakd_cache.record import RowValue
from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample, chosen_samples
from betakd_stages.distillation.cached_targets import CachedBatch
from betakd_stages.ensemble.capping import capped, kept_gold
from betakd_stages.ensemble.gate import fitted_weights
from betakd_stages.ensemble.names import stored
from betakd_stages.ensemble.parts import JoinedSamples, join_samples, mixture_identity, mixture_rules, require_parts
from betakd_stages.ensemble.records import TeacherEnsemble
from betakd_stages.ensemble.rules import MEASURED
from betakd_stages.errors import MismatchError
from betakd_stages.progress import Progress
from betakd_stages.settings import MixtureSettings
from betakd_stages.teachers.records import cut_columns, flat_columns
from betakd_stages.trust.evidence import Floats
from betakd_stages.trust.file import read_trust, require_trust, trust_path

BLOCK_SAMPLES = 64
WEIGHT_COLUMN = re.compile(r"weight_[0-9]+")

_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class MergedMixture:
    """What `merge_mixture` wrote."""

    path: str
    sources: tuple[str, ...]
    teacher_weighting: str
    mean_weights: tuple[float, ...]
    """Of each teacher over all samples."""
    num_samples: int
    num_carried: int
    """Samples that some of the caches lack: the others carry them."""
    num_rejected: int
    num_tokens: int
    num_shards: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"sources": list(self.sources), "mean_weights": list(self.mean_weights)}


def merge_mixture(
    settings: MixtureSettings, target: str, *, overwrite: bool = False, progress: Progress
) -> MergedMixture:
    """A new cache at `target` of the mixture of the caches' teachers; run again, it resumes.

    Raises CacheError, ConfigError or MismatchError where the caches do not belong together; nothing is written then.
    """
    caches = [open_cache(source) for source in settings.caches]
    require_parts(caches)
    joined, rules = join_samples(caches), mixture_rules(caches)
    given = _fitted(settings, caches, joined, progress)
    identity = mixture_identity(caches, _weighting(settings, given))
    rows = [_further_columns(cache) for cache in caches]
    # Not for the prior: so that each teacher's weight is said as well.
    weighed = settings.ensemble.model_copy(update={"combine": "prior"})
    ensemble = TeacherEnsemble(tuple(caches), joined.indices, weighed, given)
    with CacheWriter.open_with(
        target, identity, rules, shard_samples=settings.shard_samples, overwrite=overwrite
    ) as writer:
        missing = np.array([n for n, name in enumerate(joined.sample_ids) if name not in writer.stored], np.int64)
        progress.start("samples mixed", total=len(joined.sample_ids), done=len(joined.sample_ids) - len(missing))
        try:
            for start in range(0, len(missing), BLOCK_SAMPLES):
                places = missing[start : start + BLOCK_SAMPLES]
                writer.extend(_mixed_records(ensemble, joined, rows, places, rules.token_rule.top_k))
                progress.advance(len(places))
        finally:
            progress.finish()
        for sample_id, reason in joined.rejected.items():
            if sample_id not in writer.stored:
                writer.reject(sample_id, reason)
        writer.complete()
    return _summary(settings, target, joined)


def _summary(settings: MixtureSettings, target: str, joined: JoinedSamples) -> MergedMixture:
    merged = open_cache(target)
    names = [_weight_column(number) for number in range(len(settings.caches))]
    weights = merged.rows(names).to_pydict() if len(merged) else {}
    counts = merged.manifest.counts
    return MergedMixture(
        path=target,
        sources=settings.caches,
        teacher_weighting=settings.ensemble.weighting,
        mean_weights=tuple(float(np.mean(values)) for values in weights.values()),
        num_samples=counts.num_samples,
        num_carried=joined.num_carried,
        num_rejected=counts.num_rejected,
        num_tokens=counts.num_tokens,
        num_shards=counts.num_shards,
    )


def _fitted(
    settings: MixtureSettings, caches: Sequence[TeacherCache], joined: JoinedSamples, progress: Progress
) -> Floats | None:
    """What a fitted rule says of every teacher and sample `[S, T]`, 0 where one lacks the sample; None for others."""
    data = settings.data or caches[0].manifest.identity["data"]["specification"]
    if settings.ensemble.weighting == "learned":
        samples = _samples(data, caches[0], joined.sample_ids)
        return fitted_weights(caches, joined.indices, samples, settings.fit, progress)
    if settings.ensemble.weighting != "trust":
        return None
    given = np.zeros(joined.indices.shape, np.float32)
    for number, cache in enumerate(caches):
        places = np.flatnonzero(joined.indices[:, number] >= 0)
        indices, path = joined.indices[places, number], trust_path(cache.location)
        trust = read_trust(path, cache, data)
        require_trust(path, trust, indices, cache, data)
        given[places, number] = trust[indices]
    return given


def _samples(data: str, cache: TeacherCache, sample_ids: Sequence[str]) -> Sequence[Sample]:
    """The samples of these ids in the data. Raises MismatchError for other data than the cache's."""
    samples, held = load_samples(data), cache.manifest.identity["data"]
    if samples.fingerprint != held["fingerprint"]:
        raise MismatchError(
            f"{data} is not the data that {cache.location} was made from (fingerprint {samples.fingerprint[:12]} "
            f"against {held['fingerprint'][:12]}): give --data, which was {held['specification']!r} then"
        )
    positions = {sample.sample_id: position for position, sample in enumerate(samples)}
    return chosen_samples(samples, [positions[name] for name in sample_ids])


def _weighting(settings: MixtureSettings, given: Floats | None) -> dict[str, Any]:
    """What the weights depend on, for the identity."""
    rule = settings.ensemble.weighting
    fields: dict[str, Any] = {"rule": rule}
    if rule in MEASURED:
        fields["per"] = settings.ensemble.per
    if rule == "entropy":
        fields["entropy_scale"] = settings.ensemble.entropy_scale
    if rule == "learned":
        fields["fit"] = settings.fit.model_dump(mode="json")
    if rule == "trust" and given is not None:
        fields["trust_sha256"] = hashlib.sha256(given.tobytes()).hexdigest()
    return fields


def _mixed_records(
    ensemble: TeacherEnsemble, joined: JoinedSamples, rows: Sequence[pa.Table], places: NDArray[np.int64], top_k: int
) -> list[TeacherRecord]:
    """The records of the mixture at these places of the samples; `rows` are the further columns of every cache."""
    mixed = ensemble.decode(ensemble.batch(places), torch.device("cpu"))
    assert mixed.experts is not None
    targets = kept_gold(capped(mixed.targets, top_k))
    columns = _rows(rows, joined.indices[places], mixed.experts.weights.numpy().astype(np.float64))
    parts = cut_columns(flat_columns(targets), joined.num_tokens[places].tolist())
    return [
        TeacherRecord(joined.sample_ids[place], features=features, focus=focus, row=row, **arrays)
        for place, arrays, (features, focus), row in zip(places, parts, _features(mixed), columns, strict=True)
    ]


def _rows(
    tables: Sequence[pa.Table], indices: NDArray[np.int64], weights: NDArray[np.float64]
) -> list[dict[str, RowValue]]:
    """The further columns of samples `[B, T]`, as the first cache has them that holds it, and the weights."""
    owners = (indices >= 0).argmax(axis=1)
    found: list[dict[str, RowValue]] = [{} for _ in owners]
    for number, table in enumerate(tables):
        places = np.flatnonzero(owners == number)
        for place, row in zip(places, table.take(pa.array(indices[places, number])).to_pylist(), strict=True):
            found[place] = row | {_weight_column(of): weight for of, weight in enumerate(weights[place].tolist())}
    return found


def _further_columns(cache: TeacherCache) -> pa.Table:
    """The columns of the rows that are the cache's own, without the weights of which it is a mixture itself."""
    rows = cache.rows()
    names = [name for name in rows.column_names if name not in RESERVED_COLUMNS]
    return rows.select([name for name in names if not WEIGHT_COLUMN.fullmatch(name)])


def _weight_column(number: int) -> str:
    """The column of the rows that says how much a teacher counts, on the mean of a sample's tokens."""
    return f"weight_{number + 1}"


def _features(batch: CachedBatch) -> list[tuple[_Arrays, _Arrays]]:
    """Of every sample its teachers' features, as NAME_1, NAME_2, ..., and their places in focus."""
    found: list[tuple[_Arrays, _Arrays]] = [({}, {}) for _ in range(batch.targets.num_samples)]
    for name, present in batch.present.items():
        for place in present.nonzero()[:, 0].tolist():
            features, focus = found[place]
            features[stored(name)] = batch.features[name][place].numpy()
            if focus_name(name) in batch.features:
                focus[stored(name)] = batch.features[focus_name(name)][place].numpy()
    return found

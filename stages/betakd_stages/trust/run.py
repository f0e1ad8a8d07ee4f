"""`cache trust`: from a cache and its labels to a trust file, and what to show of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from betakd_cache import TeacherCache, open_cache
from betakd_stages.caching.kinds import require_of_teacher
from betakd_stages.caching.written_rows import targets_of
from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample, SampleSet
from betakd_stages.errors import MismatchError
from betakd_stages.progress import Progress
from betakd_stages.settings import TrustSettings
from betakd_stages.trust.evidence import Evidence, Floats, order_by_hash, read_evidence
from betakd_stages.trust.file import TrustIdentity, cache_fingerprint, trust_path, write_trust
from betakd_stages.trust.groups import Groups, group_name, make_groups
from betakd_stages.trust.mixture import fitted_shares
from betakd_stages.trust.report import Clash, TrustReport, group_rows, histogram, worst_clashes
from betakd_stages.trust.scores import score_groups, trust_of


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSamples:
    """The samples of the data that the cache holds, S of them, in the order of the cache."""

    sample_ids: list[str]
    positions: NDArray[np.int64]
    """[S] in the data."""
    indices: NDArray[np.int64]
    """[S] in the cache."""
    groups: Groups


def fit_trust(settings: TrustSettings, *, num_clashes: int = 10, progress: Progress) -> TrustReport:
    """What was found; the trust file is written beside the cache, or where the settings say.

    Raises MismatchError where data and cache do not belong together, and CacheError where there is no cache.
    """
    cache = open_cache(settings.cache)
    out = trust_path(cache.location, settings.out)
    samples = load_samples(settings.data)
    labelled = match_labels(cache, samples, settings)
    evidence = read_evidence([cache], labelled.indices[:, None], labelled.groups, settings.seed, progress)
    # From here on in an order of the ids' own, so that nothing drawn at random depends on the order of the cache.
    order, hashes = order_by_hash(labelled.sample_ids)
    evidence, groups = evidence.taken(order), labelled.groups.taken(order)
    pi = fitted_shares(evidence, groups, hashes, settings)[:, 0]
    scores = score_groups(pi, evidence, groups)
    trust = trust_of(pi, groups, scores)
    sample_ids = [labelled.sample_ids[place] for place in order]
    write_trust(out, sample_ids, groups, pi, trust, _identity(cache, samples, settings))
    return TrustReport(
        path=str(out),
        num_samples=len(sample_ids),
        groups=group_rows(evidence, groups, pi, trust, scores),
        histogram=histogram(trust),
        clashes=tuple(
            _clash(samples[int(labelled.positions[order[place]])], groups, evidence, trust, place)
            for place in worst_clashes(evidence, num_clashes)
        ),
    )


def match_labels(cache: TeacherCache, samples: SampleSet, settings: TrustSettings) -> LabelledSamples:
    """The samples that both have. Raises MismatchError for a cache of another kind, for a sample that the cache lacks
    and for one whose text is not what the teacher was given."""
    require_of_teacher(cache)
    if "data" not in targets_of(cache.manifest):
        raise MismatchError(
            f"{cache.location} holds only answers that the teacher wrote, and trust is judged by the data's: run "
            "cache-teacher with --targets data (or data,generate)"
        )
    kept: list[tuple[int, str, str, str]] = []
    for position, sample in enumerate(samples):
        if sample.sample_id not in cache.rejected:
            name = group_name(sample, settings.group_words)
            kept.append((position, sample.sample_id, sample.content_sha256(), name))
    positions, sample_ids, contents, names = zip(*kept, strict=True) if kept else ((), (), (), ())
    indices = cache.index_of(sample_ids)
    _require_same_text(cache, sample_ids, contents, indices)
    order = np.argsort(indices, kind="stable")
    return LabelledSamples(
        [sample_ids[place] for place in order],
        np.array(positions, np.int64)[order],
        indices[order],
        make_groups((names[place] for place in order), settings.smallest_group),
    )


def _require_same_text(
    cache: TeacherCache, sample_ids: Sequence[str], contents: Sequence[str], indices: NDArray[np.int64]
) -> None:
    if not len(indices):
        raise MismatchError(f"{cache.location} holds no sample of the data: give the data the cache was made from")
    held = cache.rows(["content_sha256"])["content_sha256"].take(indices).to_pylist()
    changed = [name for name, found, wanted in zip(sample_ids, held, contents, strict=True) if found != wanted]
    if changed:
        raise MismatchError(
            f"sample {changed[0]!r}: its question or answer differs from what the teacher was given ({len(changed)} of "
            f"{len(sample_ids)} samples differ): give the data the cache was made from, which is "
            f"{cache.manifest.identity['data']['specification']!r}"
        )


def _identity(cache: TeacherCache, samples: SampleSet, settings: TrustSettings) -> TrustIdentity:
    return TrustIdentity(
        cache_fingerprint(cache),
        {"specification": samples.specification, "fingerprint": samples.fingerprint},
        settings.model_dump(mode="json", exclude={"cache", "data", "out"}),
    )


def _clash(sample: Sample, groups: Groups, evidence: Evidence, trust: Floats, place: int) -> Clash:
    turns = sample.turns
    return Clash(
        sample_id=sample.sample_id,
        group=groups.names[groups.of_sample[place]],
        nats=float(evidence.gap[place, 0]),
        trust=float(trust[place]),
        question=" / ".join(turn.question for turn in turns),
        answer=" / ".join(turn.answer for turn in turns),
    )

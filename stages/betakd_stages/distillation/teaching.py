"""What teaches a run: its caches, opened, and found to belong to its samples. One cache, several, or none.

S samples of the run, T caches.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_cache import Manifest, TeacherCache, open_cache
from betakd_cache.staging import LIMIT_BYTES
from betakd_stages.data.sample import Sample, SampleSet
from betakd_stages.distillation.cached_vision import TrainingEncoder
from betakd_stages.distillation.dataset import make_collator, shuffled_within_lengths
from betakd_stages.distillation.entropy_quartiles import entropy_borders
from betakd_stages.distillation.matching import MatchedSamples, match_cache
from betakd_stages.encoding import Encoder
from betakd_stages.ensemble.gate import fitted_weights
from betakd_stages.ensemble.matching import match_caches
from betakd_stages.ensemble.records import TeacherEnsemble
from betakd_stages.ensemble.rules import FITTED
from betakd_stages.ensemble.stored import TEACHER_WEIGHTS, read_teacher_weights, write_teacher_weights
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.objective import Objective
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings, FitSettings
from betakd_stages.trust.file import read_trust, require_trust, trust_path
from betakd_stages.weighting_inputs import TRUST


@dataclass(frozen=True, slots=True, eq=False)
class Teaching:
    """The caches of a run and its samples."""

    settings: DistillSettings
    caches: tuple[TeacherCache, ...]
    matched: MatchedSamples
    ensemble: TeacherEnsemble | None
    """Of several caches."""

    @property
    def cache(self) -> TeacherCache | None:
        """The cache, where there is one alone."""
        return self.caches[0] if len(self.caches) == 1 else None

    @property
    def teacher(self) -> Manifest | TeacherEnsemble | None:
        """What decodes batches."""
        return self.ensemble or (self.cache.manifest if self.cache else None)

    def entropy_borders(self) -> tuple[float, ...]:
        """The borders between quartiles of the teacher's entropy; none where there is not one teacher."""
        return entropy_borders(self.cache, self.matched.cache_indices) if self.cache else ()

    def collator(
        self, encoder: TrainingEncoder, objective: Objective, *, packing: bool = False
    ) -> Callable[[list[Any]], dict[str, Any]]:
        """What makes batches. Raises ConfigError or MismatchError where the objective needs trust that is not there."""
        indices: NDArray[np.int64] | None = self.matched.cache_indices
        trust = None
        if self.cache is not None:
            assert indices is not None
            if self.settings.control.shuffle_records:
                indices = shuffled_within_lengths(self.matched, self.cache, self.settings.seed)
            if objective.inputs.has_trust:
                trust = trust_in(self.cache, indices, self.settings)
        elif objective.inputs.has_trust and self.ensemble is None:
            raise ConfigError(
                "the weighting needs the trust in a teacher, but no cache is given: name one (--cache DIR)"
            )
        return make_collator(encoder, self.ensemble or self.cache, indices, trust=trust, packing=packing)


def open_caches_of(settings: DistillSettings) -> tuple[TeacherCache, ...]:
    """The caches that the settings name. Raises CacheError where one cannot be opened."""
    return tuple(open_cache_of(settings, path) for path in settings.caches)


def open_cache_of(settings: DistillSettings, path: str) -> TeacherCache:
    """A cache, staged as the settings say. Raises CacheError where it cannot be opened."""
    limit_gb = settings.staging_limit_gb
    limit_bytes = LIMIT_BYTES if limit_gb is None else round(limit_gb * 1e9)
    return open_cache(path, staging=settings.staging, staging_limit_bytes=limit_bytes)


def match_teachers(
    settings: DistillSettings,
    caches: Sequence[TeacherCache],
    samples: SampleSet,
    encoder: Encoder,
    run: Path,
    progress: Progress,
) -> Teaching:
    """The samples that can be learned, with where the caches hold them.

    What a rule fits to them is read from the folder `run` if it is there. Raises MismatchError as `match_cache` does.
    """
    own_prompts = settings.prompts == "own"
    if not caches:
        matched = MatchedSamples(samples, np.arange(len(samples)), None, 0)
        return Teaching(settings, (), matched, None)
    if len(caches) == 1:
        matched = match_cache(
            caches[0], samples, encoder, settings.on_mismatch, own_prompts=own_prompts, targets=settings.targets
        )
        return Teaching(settings, tuple(caches), matched, None)
    matched, indices = match_caches(caches, samples, encoder, settings.on_mismatch, own_prompts=own_prompts)
    ensemble = TeacherEnsemble(tuple(caches), indices, settings.ensemble)
    return Teaching(
        settings, tuple(caches), matched, with_fitted_numbers(ensemble, settings, matched.samples, run, progress)
    )


def with_fitted_numbers(
    ensemble: TeacherEnsemble, settings: DistillSettings, samples: Sequence[Sample], run: Path, progress: Progress
) -> TeacherEnsemble:
    """The ensemble with what its rule, or the weighting, has to know of each sample before training."""
    trust, rule = None, settings.ensemble.weighting
    needs_trust = settings.weighting.name == "robust" or TRUST in (settings.weighting.inputs or ())
    if rule == "trust" or needs_trust:
        trust = np.zeros(ensemble.indices.shape, np.float32)
        for number, (cache, indices) in enumerate(zip(ensemble.caches, ensemble.indices.T, strict=True)):
            held = indices >= 0
            trust[held, number] = trust_in(cache, indices[held], settings)[indices[held]]
    given, stored = trust if rule == "trust" else None, run / TEACHER_WEIGHTS
    if rule in FITTED and stored.is_file():
        given = read_teacher_weights(stored, [sample.sample_id for sample in samples], len(ensemble.caches))
    elif rule == "learned":
        fit = FitSettings(seed=settings.seed)
        given = fitted_weights(ensemble.caches, ensemble.indices, samples, fit, progress)
    return dataclasses.replace(ensemble, given=given, trust=trust if needs_trust else None)


def require_all_teach(teaching: Teaching) -> None:
    """Nothing; raises MismatchError where one of several caches holds none of the run's samples."""
    if teaching.ensemble is None:
        return
    for cache, num_missing in zip(teaching.caches, teaching.ensemble.num_missing, strict=True):
        if num_missing == len(teaching.matched.samples):
            raise MismatchError(
                f"{cache.location} holds no sample of {teaching.settings.data!r}: give the data it was made from "
                f"({cache.manifest.identity['data']['specification']!r}), or leave this cache out"
            )


def keep_fitted_numbers(teaching: Teaching, run: Path) -> None:
    """Write what a rule fitted to the samples into the folder of the run."""
    if teaching.ensemble is None or teaching.ensemble.given is None or (run / TEACHER_WEIGHTS).is_file():
        return
    ids = [sample.sample_id for sample in teaching.matched.samples]
    write_teacher_weights(run / TEACHER_WEIGHTS, ids, teaching.ensemble.given)


def trust_in(cache: TeacherCache, indices: NDArray[np.int64], settings: DistillSettings) -> NDArray[np.float32]:
    """The trust in every record of a cache `[len(cache)]`, known for those of these indices.

    Raises ConfigError or MismatchError where it is not to be had.
    """
    path = trust_path(cache.location, settings.trust)
    trust = read_trust(path, cache, settings.data)
    require_trust(path, trust, indices, cache, settings.data)
    return trust

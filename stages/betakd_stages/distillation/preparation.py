"""All that a run of stage two needs, opened and found to belong together; nothing is written yet."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainingArguments, set_seed

from betakd_cache import Manifest, TeacherCache, open_cache
from betakd_cache.staging import LIMIT_BYTES
from betakd_stages.data import load_samples
from betakd_stages.distillation.arguments import training_arguments
from betakd_stages.distillation.batches import RunBatches, StepShape, grouping_sizes, num_steps, step_shape
from betakd_stages.distillation.cached_vision import training_encoder
from betakd_stages.distillation.dataset import EncodedSamples, make_collator, shuffled_within_lengths
from betakd_stages.distillation.distiller import Distiller
from betakd_stages.distillation.entropy_quartiles import entropy_borders
from betakd_stages.distillation.held_out import TeacherAgreement, held_out_agreement
from betakd_stages.distillation.launching import require_what_processes_can
from betakd_stages.distillation.matching import MatchedSamples, match_cache
from betakd_stages.distillation.optimizers import student_groups
from betakd_stages.distillation.precision import require_precision
from betakd_stages.distillation.student import load_student
from betakd_stages.distillation.tracking import tracking_callbacks
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.errors import ConfigError
from betakd_stages.features import FeatureStatistics, require_places
from betakd_stages.models.loading import LoadedModel, load_encoder
from betakd_stages.objective import Objective, build_objective
from betakd_stages.processes import index_and_count, join_processes
from betakd_stages.settings import DistillSettings
from betakd_stages.trust.file import read_trust, require_trust, trust_path

PACKABLE = ("llava", "mobilevlm")
"""Families whose positions are plain counts and whose attention is causal: where positions begin anew, samples do."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that could start."""

    student: LoadedModel
    distiller: Distiller
    dataset: EncodedSamples
    collate: Callable[[list[Any]], dict[str, Any]]
    batches: RunBatches
    shape: StepShape
    num_steps: int
    num_dropped: int
    arguments: TrainingArguments
    trackers: list[TrainerCallback]
    agreement: TeacherAgreement
    entropy_borders: tuple[float, ...]

    def trainer(self, settings: DistillSettings) -> DistillationTrainer:
        """What trains the student."""
        return DistillationTrainer(
            self.distiller,
            settings,
            self.batches,
            args=self.arguments,
            train_dataset=self.dataset,
            data_collator=self.collate,
            callbacks=self.trackers,
        )


def prepare(settings: DistillSettings, out: Path) -> Prepared:
    """The run that these settings describe, in this process.

    Raises MismatchError, DataError, ModelError, ConfigError or CacheError where the inputs do not belong together.
    """
    require_precision(settings)
    join_processes()
    if settings.training.num_threads:
        torch.set_num_threads(settings.training.num_threads)
    set_seed(settings.seed)
    cache = open_cache_of(settings) if settings.cache else None
    matched = _matched(settings, cache)
    student = load_student(settings)
    manifest = cache.manifest if cache else None
    objective = build_student_objective(settings, student, manifest)
    distiller = Distiller(student.model, objective, student.encoder.vocabulary_size, manifest)
    encoder = training_encoder(settings.vision_cache, student, matched.image_sha256)
    dataset = EncodedSamples(matched.samples, encoder, matched.image_sha256, matched.answers)
    for place in range(min(len(dataset), 2 * settings.training.batch_size)):
        dataset[place]  # an unreadable or foreign image shows at once
    index, count = index_and_count()
    shape = step_shape(settings.training, count)
    total = num_steps(settings.training, len(dataset), shape.num_samples)
    arguments = training_arguments(settings, out, shape, total)
    student_groups(student.model, settings.training)
    require_packing(settings, student)
    require_what_processes_can(settings)
    cache_indices = matched.cache_indices
    if settings.control.shuffle_records and cache is not None:
        cache_indices = shuffled_within_lengths(matched, cache, settings.seed)
    trust = trust_in_records(objective, settings, cache, cache_indices)
    sizes = grouping_sizes(matched.samples, settings.training.group_by)
    return Prepared(
        student=student,
        distiller=distiller,
        dataset=dataset,
        collate=make_collator(encoder, cache, cache_indices, trust=trust, packing=settings.training.packing),
        batches=RunBatches(len(dataset), shape, num_steps=total, process_index=index, seed=settings.seed, sizes=sizes),
        shape=shape,
        num_steps=total,
        num_dropped=matched.num_dropped,
        arguments=arguments,
        trackers=tracking_callbacks(settings, out),
        agreement=held_out_agreement(settings, student.encoder, cache, open_cache_of),
        entropy_borders=entropy_borders(cache, matched.cache_indices) if cache else (),
    )


def require_packing(settings: DistillSettings, student: LoadedModel) -> None:
    """Nothing; raises ConfigError where samples are to be packed and the student's family cannot tell them apart."""
    family = student.model.config.model_type
    if settings.training.packing and family not in PACKABLE:
        raise ConfigError(
            f"training.packing is true, but students of model type {family!r} were never seen to keep packed samples "
            f"apart: leave it out ({', '.join(PACKABLE)} do)"
        )


def _matched(settings: DistillSettings, cache: TeacherCache | None) -> MatchedSamples:
    samples = load_samples(settings.data)
    if cache is None:
        return MatchedSamples(samples, torch.arange(len(samples)).numpy(), None, 0)
    return match_cache(
        cache,
        samples,
        load_encoder(settings.student, settings.max_length),
        settings.on_mismatch,
        own_prompts=settings.prompts == "own",
        targets=settings.targets,
    )


def trust_in_records(
    objective: Objective, settings: DistillSettings, cache: TeacherCache | None, cache_indices: NDArray[np.int64] | None
) -> NDArray[np.float32] | None:
    """The trust in every record of the cache `[len(cache)]`, known for those of these indices; None where the objective
    needs none. Raises ConfigError or MismatchError where it is not to be had."""
    if not objective.inputs.has_trust:
        return None
    if cache is None or cache_indices is None:
        raise ConfigError("the weighting needs the trust in a teacher, but no cache is given: name one (--cache DIR)")
    path = trust_path(cache.location, settings.trust)
    trust = read_trust(path, cache, settings.data)
    require_trust(path, trust, cache_indices, cache, settings.data)
    return trust


def open_cache_of(settings: DistillSettings) -> TeacherCache:
    """The cache that the settings name. Raises CacheError where it cannot be opened."""
    limit_gb = settings.staging_limit_gb
    limit_bytes = LIMIT_BYTES if limit_gb is None else round(limit_gb * 1e9)
    return open_cache(str(settings.cache), staging=settings.staging, staging_limit_bytes=limit_bytes)


def build_student_objective(settings: DistillSettings, student: LoadedModel, manifest: Manifest | None) -> Objective:
    """The objective of these settings, for what the cache holds and the student gives."""
    teacher_features = {
        name: FeatureStatistics(torch.from_numpy(held.mean).float(), torch.from_numpy(held.deviation).float())
        for name, held in (manifest.feature_statistics if manifest else {}).items()
    }
    if manifest and any(feature.name == "vision" for feature in settings.objective.features):
        layout = manifest.rules.layout("vision")
        require_places(layout.num_places, layout.name, student.encoder.num_image_tokens)
    hidden_size = student.model.config.get_text_config().hidden_size
    return build_objective(
        energies=[(energy.name, energy.options) for energy in settings.objective.energies],
        features=[(feature.name, feature.options) for feature in settings.objective.features],
        weighting=settings.weighting.name,
        weighting_settings=settings.weighting.options,
        weighting_inputs=settings.weighting.inputs,
        semantics=settings.objective.semantics,
        ce_weight=settings.objective.cross_entropy_weight,
        reduction=settings.objective.reduction,
        teacher_features=teacher_features,
        student_feature_sizes={"vision": hidden_size, "prompt": hidden_size},
    )

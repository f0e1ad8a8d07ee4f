"""All that a run of stage two needs, opened and found to belong together; nothing is written yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from betakd_cache import Manifest
from betakd_stages.data import load_samples
from betakd_stages.distillation.arguments import training_arguments
from betakd_stages.distillation.batches import RunBatches, StepShape, grouping_sizes, num_steps, step_shape
from betakd_stages.distillation.cached_vision import training_encoder
from betakd_stages.distillation.dataset import EncodedSamples
from betakd_stages.distillation.distiller import Distiller
from betakd_stages.distillation.held_out import TeacherAgreement, held_out_agreement
from betakd_stages.distillation.launching import require_what_processes_can
from betakd_stages.distillation.optimizers import student_groups
from betakd_stages.distillation.precision import require_precision
from betakd_stages.distillation.student import load_student
from betakd_stages.distillation.teaching import (
    Teaching,
    match_teachers,
    open_cache_of,
    open_caches_of,
    require_all_teach,
)
from betakd_stages.distillation.tracking import tracking_callbacks
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.ensemble.names import numbered, plain
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.features import FeatureStatistics, require_places
from betakd_stages.models.loading import LoadedModel, load_encoder
from betakd_stages.objective import Objective
from betakd_stages.objective_building import build_objective
from betakd_stages.posterior.refusals import require_posterior
from betakd_stages.processes import index_and_count, join_processes
from betakd_stages.progress import Progress, SilentProgress
from betakd_stages.settings import DistillSettings

PACKABLE = ("llava", "mobilevlm")
"""Families whose positions are plain counts and whose attention is causal: where positions begin anew, samples do."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that could start."""

    teaching: Teaching
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


def prepare(settings: DistillSettings, out: Path, progress: Progress | None = None) -> Prepared:
    """The run that these settings describe, in this process.

    Raises MismatchError, DataError, ModelError, ConfigError or CacheError where the inputs do not belong together.
    """
    require_precision(settings)
    join_processes()
    if settings.training.num_threads:
        torch.set_num_threads(settings.training.num_threads)
    set_seed(settings.seed)
    caches = open_caches_of(settings)
    samples, encoder = load_samples(settings.data), load_encoder(settings.student, settings.max_length)
    teaching = match_teachers(settings, caches, samples, encoder, out, progress or SilentProgress())
    require_all_teach(teaching)
    matched = teaching.matched
    student = load_student(settings)
    objective = build_student_objective(settings, student, [cache.manifest for cache in caches])
    distiller = Distiller(student.model, objective, student.encoder.vocabulary_size, teaching.teacher)
    training = training_encoder(settings.vision_cache, student, matched.image_sha256)
    dataset = EncodedSamples(matched.samples, training, matched.image_sha256, matched.answers)
    for place in range(min(len(dataset), 2 * settings.training.batch_size)):
        dataset[place]  # an unreadable or foreign image shows at once
    index, count = index_and_count()
    shape = step_shape(settings.training, count)
    total = num_steps(settings.training, len(dataset), shape.num_samples)
    arguments = training_arguments(settings, out, shape, total)
    student_groups(student.model, settings.training)
    require_packing(settings, student)
    require_what_processes_can(settings)
    require_posterior(settings)
    sizes = grouping_sizes(matched.samples, settings.training.group_by)
    return Prepared(
        teaching=teaching,
        student=student,
        distiller=distiller,
        dataset=dataset,
        collate=teaching.collator(training, objective, packing=settings.training.packing),
        batches=RunBatches(len(dataset), shape, num_steps=total, process_index=index, seed=settings.seed, sizes=sizes),
        shape=shape,
        num_steps=total,
        num_dropped=matched.num_dropped,
        arguments=arguments,
        trackers=tracking_callbacks(settings, out),
        agreement=held_out_agreement(settings, student.encoder, teaching.cache, open_cache_of),
        entropy_borders=teaching.entropy_borders(),
    )


def require_packing(settings: DistillSettings, student: LoadedModel) -> None:
    """Nothing; raises ConfigError where samples are to be packed and the student's family cannot tell them apart."""
    family = student.model.config.model_type
    if settings.training.packing and family not in PACKABLE:
        raise ConfigError(
            f"training.packing is true, but students of model type {family!r} were never seen to keep packed samples "
            f"apart: leave it out ({', '.join(PACKABLE)} do)"
        )


def build_student_objective(
    settings: DistillSettings, student: LoadedModel, manifests: Sequence[Manifest]
) -> Objective:
    """The objective of these settings, for what the caches hold and the student gives."""
    teacher_features = {
        numbered(name, teacher) if len(manifests) > 1 else name: FeatureStatistics(
            torch.from_numpy(held.mean).float(), torch.from_numpy(held.deviation).float()
        )
        for teacher, manifest in enumerate(manifests)
        for name, held in manifest.feature_statistics.items()
    }
    if any(feature.name == "vision" for feature in settings.objective.features):
        layouts = {
            manifest.rules.layout(name)
            for manifest in manifests
            for name in manifest.feature_sizes
            if plain(name) == "vision"
        }
        if len(layouts) > 1:
            names = ", ".join(sorted(layout.name for layout in layouts))
            raise MismatchError(
                f"the caches hold the feature vision as {names}: name caches of one layout, or leave it out"
            )
        for layout in layouts:
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
        num_teachers=len(manifests),
        combine=settings.ensemble.combine,
    )

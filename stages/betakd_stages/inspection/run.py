"""Samples of a finished run, seen with the eyes of its student and of its teacher's cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample, SampleSet, chosen_samples
from betakd_stages.distillation.dataset import EncodedSamples
from betakd_stages.distillation.distiller import Distiller, load_weights
from betakd_stages.distillation.preparation import build_student_objective
from betakd_stages.distillation.run import MODEL_FOLDER, WEIGHTING
from betakd_stages.distillation.teaching import match_teachers, open_caches_of
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.errors import ConfigError, DataError
from betakd_stages.inspection.tokens import conversation, token_views
from betakd_stages.inspection.views import ChannelView, SampleView
from betakd_stages.models.loading import load_model
from betakd_stages.objective import ObjectiveOutput
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings


def inspect_samples(
    run: Path, settings: DistillSettings, *, sample_ids: Sequence[str] = (), count: int = 1, num_guesses: int = 5
) -> list[SampleView]:
    """The samples with these ids in this order, or the first `count`, as the run in folder `run` learned them.

    The student is the finished one, without dropout, and so are learned weights and energies; each sample is looked at
    alone. Raises ConfigError for a run that is not finished or learned from shuffled records, DataError for an unknown
    id, and whatever the run itself would raise where its cache, data or images are not what they were.
    """
    if not (run / MODEL_FOLDER).is_dir():
        raise ConfigError(f"{run} holds no {MODEL_FOLDER}/, so its run is not finished: run distill again, it goes on")
    if settings.control.shuffle_records:
        raise ConfigError(
            f"{run} learned from shuffled records, so what it saw is not the sample's own: name another run"
        )
    student = load_model(str(run / MODEL_FOLDER), max_length=settings.max_length)
    caches = open_caches_of(settings)
    asked = SampleSet(settings.data, _chosen(load_samples(settings.data), sample_ids, count))
    strict = settings.model_copy(update={"on_mismatch": "stop"})
    teaching = match_teachers(strict, caches, asked, student.encoder, run, SilentProgress())
    matched = teaching.matched
    objective = build_student_objective(settings, student, [cache.manifest for cache in caches])
    load_weights(objective, run / WEIGHTING)
    distiller = Distiller(student.model, objective, student.encoder.vocabulary_size, teaching.teacher).eval()
    dataset = EncodedSamples(matched.samples, student.encoder, matched.image_sha256, matched.answers)
    collate = teaching.collator(student.encoder, objective)
    return [
        _view(distiller, student.encoder, sample, collate([dataset[place]]), dataset[place][1], num_guesses)
        for place, sample in enumerate(matched.samples)
    ]


def _chosen(samples: SampleSet, sample_ids: Sequence[str], count: int) -> Sequence[Sample]:
    """The samples of these ids, or the first `count`. Raises DataError for ids that are not there."""
    if not sample_ids:
        return chosen_samples(samples, range(min(count, len(samples))))
    wanted = set(sample_ids)
    places = {sample.sample_id: place for place, sample in enumerate(samples) if sample.sample_id in wanted}
    for sample_id in sample_ids:
        if sample_id not in places:
            raise DataError(
                f"{samples.specification} has no sample {sample_id!r} (its first is {samples[0].sample_id!r}): name "
                "samples of the data that the run was trained on"
            )
    return chosen_samples(samples, [places[sample_id] for sample_id in sample_ids])


@torch.inference_mode()
def _view(
    distiller: Distiller,
    encoder: Encoder,
    sample: Sample,
    batch: dict[str, Any],
    encoded: EncodedSample,
    num_guesses: int,
) -> SampleView:
    """A batch of one sample, seen."""
    output: ObjectiveOutput = distiller(batch)
    has_teacher = "teacher" in batch
    return SampleView(
        sample_id=sample.sample_id,
        category=sample.category,
        image=sample.image.load().pixels if sample.image else None,
        text=conversation(encoder, encoded),
        tokens=token_views(distiller, encoder, batch, num_guesses),
        channels=_channels(distiller, output),
        objective=float(output.objective[0]),
        teacher_entropy=float(output.teacher_entropy[0]) if has_teacher else None,
        student_entropy=float(output.student_entropy[0]),
    )


def _channels(distiller: Distiller, output: ObjectiveOutput) -> tuple[ChannelView, ...]:
    columns = zip(
        distiller.objective.channels,
        output.energies[0].tolist(),
        output.betas[0].tolist(),
        output.present[0].tolist(),
        strict=True,
    )
    views = [
        ChannelView(name, energy if present else None, beta if present else None)
        for name, energy, beta, present in columns
    ]
    labels = ChannelView("cross_entropy", float(output.cross_entropy[0]), float(output.cross_entropy_weights[0]))
    return (labels, *views)

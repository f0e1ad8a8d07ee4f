"""Stage two: a student learns from a cache alone. Interrupted, the same call resumes from the last checkpoint.

The run folder gets metrics.jsonl, timings.jsonl, checkpoints/ while it trains, and validation.jsonl where the student
is measured meanwhile; weighting.safetensors, result.json, adapter/ where there is one, and model/ at the end. `model/`
is renamed into place last: a run is finished when it exists.
"""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import set_seed

from betakd_cache import Manifest, TeacherCache, open_cache
from betakd_cache.staging import LIMIT_BYTES
from betakd_stages.data import load_samples
from betakd_stages.distillation.arguments import training_arguments
from betakd_stages.distillation.batches import RunBatches, grouping_sizes, num_steps, step_shape
from betakd_stages.distillation.callback import RunCallback
from betakd_stages.distillation.checkpoints import last_checkpoint, step_of
from betakd_stages.distillation.dataset import EncodedSamples, make_collator, shuffled_within_lengths
from betakd_stages.distillation.distiller import (
    Distiller,
    is_sharded,
    load_tensors,
    trained_tensors,
    whole_tensors,
)
from betakd_stages.distillation.interruption import Interrupted, stop_requests
from betakd_stages.distillation.launching import require_what_processes_can
from betakd_stages.distillation.matching import MatchedSamples, match_cache
from betakd_stages.distillation.optimizers import student_groups
from betakd_stages.distillation.selection import ACCURACY, Selection
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.distillation.training_log import METRICS, TrainingLog, read_rows
from betakd_stages.distillation.validation import validation_accuracy
from betakd_stages.features import FeatureStatistics, require_places
from betakd_stages.files import write_atomically
from betakd_stages.models.adapters import add_adapter, merge_adapter, save_adapter
from betakd_stages.models.loading import LoadedModel, load_encoder, load_model
from betakd_stages.models.parts import freeze
from betakd_stages.objective import Objective, build_objective
from betakd_stages.processes import index_and_count, join_processes
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class DistillSummary:
    """What a call of stage two left behind."""

    steps: int
    final_metrics: dict[str, float]
    already_finished: bool


def distill(settings: DistillSettings, out: Path, *, progress: Progress) -> DistillSummary:
    """Train the student and save it to `out`/model; a finished run is left as it is.

    Several processes, as launchers start them, train it together; the first one writes, and only its summary has
    metrics. Raises MismatchError, DataError, ModelError, ConfigError or CacheError before anything is written to `out`
    where the inputs do not belong together, and Interrupted where SIGTERM or Ctrl-C stopped it, after a checkpoint.
    """
    if (out / MODEL_FOLDER).is_dir():
        result = json.loads((out / RESULT).read_text(encoding="utf-8"))
        return DistillSummary(result["steps"], result["metrics"], already_finished=True)
    join_processes()
    if settings.training.num_threads:
        torch.set_num_threads(settings.training.num_threads)
    set_seed(settings.seed)
    samples = load_samples(settings.data)
    cache = _open_cache(settings) if settings.cache else None
    if cache is None:
        matched = MatchedSamples(samples, torch.arange(len(samples)).numpy(), [], 0)
    else:
        matched = match_cache(
            cache,
            samples,
            load_encoder(settings.student, settings.max_length),
            settings.on_mismatch,
            own_prompts=settings.prompts == "own",
            targets=settings.targets,
        )
    student = load_student(settings)
    objective = build_student_objective(settings, student, cache.manifest if cache else None)
    distiller = Distiller(student.model, objective, student.encoder.vocabulary_size, cache.manifest if cache else None)
    steps, kept_step = _train(settings, distiller, student, cache, matched, out, progress)
    if is_sharded(student.model):
        trained = trained_tensors(student.model)
        student = load_student(settings)
        load_tensors(student.model, trained)
    learned = whole_tensors(objective.state_dict())
    if index_and_count()[0] > 0:
        return DistillSummary(steps, {}, already_finished=False)
    metrics = {key: value for key, value in read_rows(out / METRICS)[-1].items() if key != "step" and value is not None}
    metrics["num_dropped"] = matched.num_dropped
    if kept_step is not None:
        metrics["kept_step"] = kept_step
    if settings.validation:
        metrics[ACCURACY] = validation_accuracy(student, settings.validation)
    _finish(settings, out, student, learned, steps, metrics)
    return DistillSummary(steps, metrics, already_finished=False)


def load_student(settings: DistillSettings) -> LoadedModel:
    """The student as training starts with it: what does not train is frozen, and adapters are in place."""
    student = load_model(settings.student, max_length=settings.max_length)
    freeze(
        student.model,
        train_vision_tower=settings.training.train_vision_tower,
        train_projector=settings.training.train_projector,
    )
    add_adapter(student.model, settings.adapter)
    return student


def _open_cache(settings: DistillSettings) -> TeacherCache:
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


def _train(
    settings: DistillSettings,
    distiller: Distiller,
    student: LoadedModel,
    cache: TeacherCache | None,
    matched: MatchedSamples,
    out: Path,
    progress: Progress,
) -> tuple[int, int | None]:
    """The steps made, and the one whose student is kept where that is not the last by definition."""
    indices = matched.cache_indices
    if settings.control.shuffle_records and cache is not None:
        indices = shuffled_within_lengths(matched, cache, settings.seed)
    dataset = EncodedSamples(matched.samples, student.encoder, matched.image_sha256 if cache else None, matched.answers)
    for index in range(min(len(dataset), 2 * settings.training.batch_size)):
        dataset[index]  # an unreadable or foreign image shows before anything is written
    index, count = index_and_count()
    shape = step_shape(settings.training, count)
    total = num_steps(settings.training, len(dataset), shape.num_samples)
    arguments = training_arguments(settings, out, shape, total)
    student_groups(student.model, settings.training)
    require_what_processes_can(settings)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(out / "checkpoints")
    resumed_step = step_of(checkpoint) if checkpoint else 0
    trainer = DistillationTrainer(
        distiller,
        settings,
        RunBatches(
            len(dataset),
            shape,
            num_steps=total,
            process_index=index,
            seed=settings.seed,
            sizes=grouping_sizes(matched.samples, settings.training.group_by),
        ),
        args=arguments,
        train_dataset=dataset,
        data_collator=make_collator(student.encoder, cache, indices),
    )
    selection = Selection(
        settings.training,
        out,
        resumed_step,
        distiller,
        lambda: validation_accuracy(student, str(settings.validation), index, count),
    )
    log = TrainingLog(out, resumed_step) if index == 0 else None
    progress.start("student", total=total, done=resumed_step)
    try:
        _run(trainer, log, selection, progress, checkpoint)
    finally:
        progress.finish()
    return trainer.state.global_step, selection.restore_best()


def _run(
    trainer: DistillationTrainer,
    log: TrainingLog | None,
    selection: Selection,
    progress: Progress,
    checkpoint: Path | None,
) -> None:
    """Train to the last step, or until a signal; raises Interrupted then."""
    with stop_requests() as request:
        callback = RunCallback(trainer, log, selection, progress, request)
        trainer.add_callback(callback)
        trainer.train_from(checkpoint)
    if callback.stopped_by is not None:
        raise Interrupted(callback.stopped_by, trainer.state.global_step, trainer.state.max_steps)
    if request.signal is not None:  # it came after the last step
        signal.raise_signal(request.signal)


def _finish(
    settings: DistillSettings,
    out: Path,
    student: LoadedModel,
    learned: dict[str, torch.Tensor],
    steps: int,
    metrics: dict[str, float],
) -> None:
    temporary = out / f".tmp-{MODEL_FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    if settings.adapter.kind != "none":
        shutil.rmtree(out / ADAPTER_FOLDER, ignore_errors=True)
        save_adapter(student.model, student.folder, out / ADAPTER_FOLDER)
        merge_adapter(student.model)
    student.model.save_pretrained(temporary)
    student.encoder.save(temporary)
    save_file(learned, out / "weighting.safetensors")
    write_atomically(out / RESULT, json.dumps({"steps": steps, "metrics": metrics}, indent=2) + "\n")
    temporary.rename(out / MODEL_FOLDER)
    # Checkpoints serve only to resume, and hold the optimizer: several times the model's size.
    shutil.rmtree(out / "checkpoints", ignore_errors=True)

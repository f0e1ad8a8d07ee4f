"""Stage two: a student learns from a cache alone. Interrupted, the same call resumes from the last checkpoint.

The run folder gets metrics.jsonl, timings.jsonl, probe.jsonl, checkpoints/ while it trains, and validation.jsonl where
the student is measured meanwhile; posterior/ where that is sampled; weighting.safetensors, result.json, adapter/ where
there is one, and model/ at the end. `model/` is renamed into place last: a run is finished when it exists.
"""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from betakd_stages.distillation.callback import RunCallback
from betakd_stages.distillation.checkpoints import last_checkpoint, step_of
from betakd_stages.distillation.distiller import is_sharded, load_tensors, trained_tensors, whole_tensors
from betakd_stages.distillation.interruption import stop_requests
from betakd_stages.distillation.posterior import sample_posterior
from betakd_stages.distillation.preparation import Prepared, prepare
from betakd_stages.distillation.probe import Probe
from betakd_stages.distillation.selection import ACCURACY, Selection
from betakd_stages.distillation.student import load_student
from betakd_stages.distillation.teaching import keep_fitted_numbers
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.distillation.training_log import METRICS, TrainingLog, read_rows
from betakd_stages.distillation.validation import validation_accuracy
from betakd_stages.errors import Interrupted
from betakd_stages.files import write_atomically
from betakd_stages.models.adapters import merge_adapter, save_adapter
from betakd_stages.models.loading import LoadedModel
from betakd_stages.processes import index_and_count
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
RESULT = "result.json"
WEIGHTING = "weighting.safetensors"


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
    prepared = prepare(settings, out, progress)
    steps, kept_step = _train(settings, prepared, out, progress)
    student = prepared.student
    if is_sharded(student.model):
        trained = trained_tensors(student.model)
        student = load_student(settings)
        load_tensors(student.model, trained)
    learned = whole_tensors(prepared.distiller.objective.state_dict())
    if index_and_count()[0] > 0:
        return DistillSummary(steps, {}, already_finished=False)
    metrics = {key: value for key, value in read_rows(out / METRICS)[-1].items() if key != "step" and value is not None}
    metrics["num_dropped"] = prepared.num_dropped
    if prepared.teaching.ensemble is not None:
        metrics["num_carried"] = prepared.teaching.ensemble.num_carried
    if kept_step is not None:
        metrics["kept_step"] = kept_step
    if settings.validation:
        accuracy = validation_accuracy(student, settings.validation)
        metrics |= {ACCURACY: accuracy, **prepared.agreement.measure(student)}
    if settings.posterior.count:
        sample_posterior(settings, prepared, out, progress)
    _finish(settings, out, student, learned, steps, metrics)
    return DistillSummary(steps, metrics, already_finished=False)


def _train(settings: DistillSettings, prepared: Prepared, out: Path, progress: Progress) -> tuple[int, int | None]:
    """The steps made, and the one whose student is kept where that is not the last by definition."""
    index, count = index_and_count()
    out.mkdir(parents=True, exist_ok=True)
    if index == 0:
        keep_fitted_numbers(prepared.teaching, out)
    checkpoint = last_checkpoint(out / "checkpoints")
    resumed_step = step_of(checkpoint) if checkpoint else 0
    trainer = prepared.trainer(settings)
    selection = Selection(
        settings.training,
        out,
        resumed_step,
        prepared.distiller,
        lambda: {
            ACCURACY: validation_accuracy(prepared.student, str(settings.validation), index, count),
            **prepared.agreement.measure(prepared.student, index, count),
        },
    )
    probe = Probe(trainer, out, prepared.num_steps, resumed_step)
    log = TrainingLog(out, resumed_step, prepared.entropy_borders) if index == 0 else None
    progress.start("student", total=prepared.num_steps, done=resumed_step)
    try:
        _run(trainer, log, selection, probe, progress, checkpoint)
    finally:
        progress.finish()
    return trainer.state.global_step, selection.restore_best()


def _run(
    trainer: DistillationTrainer,
    log: TrainingLog | None,
    selection: Selection,
    probe: Probe,
    progress: Progress,
    checkpoint: Path | None,
) -> None:
    """Train to the last step, or until a signal; raises Interrupted then."""
    with stop_requests() as request:
        callback = RunCallback(trainer, log, selection, probe, progress, request)
        trainer.add_callback(callback)
        trainer.train_from(checkpoint)
    if callback.stopped_by is not None:
        steps = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
        raise Interrupted(callback.stopped_by, f"after {steps}, which a checkpoint holds")
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
    save_file(learned, out / WEIGHTING)
    write_atomically(out / RESULT, json.dumps({"steps": steps, "metrics": metrics}, indent=2) + "\n")
    temporary.rename(out / MODEL_FOLDER)
    # Checkpoints serve only to resume, and hold the optimizer: several times the model's size.
    shutil.rmtree(out / "checkpoints", ignore_errors=True)

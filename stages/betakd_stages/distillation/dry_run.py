"""What a run of stage two will cost, from a few steps of the real training that are thrown away."""

import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from betakd_stages.distillation.distiller import trained_parameters
from betakd_stages.distillation.preparation import Prepared, prepare
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings

NUM_BATCHES = 4
"""Of these the first warms up; with grouped batches it is also the largest."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a run, by that of a few of its batches."""

    num_samples: int
    num_dropped: int
    num_processes: int
    samples_per_step: int
    batch_size: int
    accumulation: int
    num_steps: int
    num_parameters: int
    """Of the student."""
    num_trained: int
    """Those that get a gradient, the objective's own included."""
    seconds_per_step: float
    hours: float
    weights_bytes: int
    """The student's and the objective's."""
    gradient_bytes: int
    optimizer_bytes: int
    checkpoint_bytes: int
    """Of one of the two that are kept."""
    peak_memory_bytes: int
    """Of this process."""
    peak_device_memory_bytes: int | None
    """Of the GPU, None where there is none."""


def dry_run(settings: DistillSettings, *, progress: Progress) -> Cost:
    """What `distill` with these settings will need, in each process. Raises what it would raise, and writes nothing."""
    with TemporaryDirectory() as folder:
        prepared = prepare(settings, Path(folder))
        trainer = prepared.trainer(settings)
        seconds = _timed_batches(trainer, prepared, progress)
    return _cost(prepared, trainer, seconds)


def _timed_batches(trainer: DistillationTrainer, prepared: Prepared, progress: Progress) -> float:
    """Seconds of an optimizer step of one batch, the median of a few."""
    distiller = prepared.distiller
    trainer.accelerator.prepare_model(distiller, evaluation_mode=True)  # for autocast, in its place
    optimizer = trainer.create_optimizer()
    trainer.measure_scales()
    seconds = []
    progress.start("batches", total=NUM_BATCHES)
    start_s = time.perf_counter()
    for _, batch in zip(range(NUM_BATCHES), trainer.get_train_dataloader(), strict=False):
        count = trainer._get_num_items_in_batch([batch], trainer.args.device)
        trainer.training_step(distiller, batch, count)
        trainer._clip_grad_norm(distiller)
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start_s)
        start_s = time.perf_counter()
        progress.advance(1)
    progress.finish()
    return statistics.median(seconds[1:] or seconds)


def _cost(prepared: Prepared, trainer: DistillationTrainer, batch_seconds: float) -> Cost:
    distiller, shape = prepared.distiller, prepared.shape
    trained = trained_parameters(distiller)
    assert trainer.optimizer is not None
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    optimizer_bytes = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    trained_bytes = sum(parameter.nbytes for parameter in trained)
    seconds = batch_seconds * shape.accumulation
    return Cost(
        num_samples=len(prepared.dataset),
        num_dropped=prepared.num_dropped,
        num_processes=shape.num_processes,
        samples_per_step=shape.num_samples,
        batch_size=shape.batch_size,
        accumulation=shape.accumulation,
        num_steps=prepared.num_steps,
        num_parameters=prepared.student.model.num_parameters(),  # which knows that 4-bit weights lie two by two
        num_trained=sum(parameter.numel() for parameter in trained),
        seconds_per_step=seconds,
        hours=seconds * (prepared.num_steps + trainer.settings.posterior.num_steps) / 3600,
        weights_bytes=sum(parameter.nbytes for parameter in distiller.parameters()),
        gradient_bytes=trained_bytes,
        optimizer_bytes=optimizer_bytes,
        checkpoint_bytes=trained_bytes + optimizer_bytes,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_device_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    )


def describe(cost: Cost) -> dict[str, Any]:
    """The cost as words, by name."""

    def size(num_bytes: int | None) -> str:
        return "no GPU" if num_bytes is None else f"{num_bytes / 1e9:.3g} GB"

    return {
        "samples": f"{cost.num_samples:,} ({cost.num_dropped:,} dropped)",
        "steps": f"{cost.num_steps:,} of {cost.samples_per_step:,} samples, as {cost.accumulation} batches of "
        f"{cost.batch_size} in each of {cost.num_processes} processes",
        "parameters": f"{cost.num_parameters:,}, and {cost.num_trained:,} train, the objective's included",
        "time": f"{cost.seconds_per_step:.3g} s per step, {cost.hours:.3g} h in all",
        "weights": size(cost.weights_bytes),
        "gradients": size(cost.gradient_bytes),
        "optimizer": size(cost.optimizer_bytes),
        "checkpoint": f"{size(cost.checkpoint_bytes)}, two are kept",
        "peak memory": size(cost.peak_memory_bytes),
        "peak GPU memory": size(cost.peak_device_memory_bytes),
    }

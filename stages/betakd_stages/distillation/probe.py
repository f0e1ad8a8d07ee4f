"""The probe: what a run makes of the same few training samples before its first step, at some moments, and at its end.

A row of metrics.jsonl is of whatever samples its steps had, so that what a weight did to one sample cannot be seen
there. A row of probe.jsonl is always of the same samples, as they are trained with, with dropout switched off.
M kept entries of all probed tokens together.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from betakd_stages.distillation.distiller import to_cpu
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.distillation.training_log import keep_rows, rows_until
from betakd_stages.matching_distance import matching_distance
from betakd_stages.processes import index_and_count
from betakd_stages.statistics import Head, student_statistics
from betakd_stages.targets import TeacherTargets

PROBE = "probe.jsonl"
MOMENTS = (0.0, 0.1, 0.3, 0.6, 1.0)
"""Shares of the steps after which the samples are probed; 0 is before the first."""
BIN_EDGES_NATS = np.linspace(-30.0, 0.0, 61)
"""Of the histograms of log-probabilities; what is below counts into the first bin."""
SIGNIFICANT_DIGITS = 6


def moments(num_steps: int) -> list[int]:
    """The steps after which a run of so many is probed, in order, each once."""
    return sorted({round(share * num_steps) for share in MOMENTS})


def probe_places(num_samples: int, num_wanted: int) -> list[int]:
    """The places of the samples to probe, drawn at random but the same for every run on as many samples."""
    return sorted(np.random.default_rng(0).permutation(num_samples)[:num_wanted].tolist())


class Probe:
    """Appends rows to probe.jsonl of a run folder; changes nothing in the training.

    Of several processes each measures all samples, so that where each holds a shard of the student (FSDP2) all make the
    same passes; the first one writes.
    """

    def __init__(self, trainer: DistillationTrainer, out: Path, num_steps: int, resumed_step: int) -> None:
        """Rows beyond `resumed_step` are dropped: they will be measured again."""
        self._trainer = trainer
        self._path = out / PROBE
        self._writes = index_and_count()[0] == 0
        self._places = probe_places(len(trainer.train_dataset), trainer.settings.training.probe_samples)  # type: ignore[arg-type]
        self._moments = moments(num_steps)
        self._last_step = -1
        if self._places:
            rows = (keep_rows if self._writes else rows_until)(self._path, resumed_step)
            self._last_step = rows[-1]["step"] if rows else -1

    def after_step(self, step: int, *, last: bool) -> None:
        """Measure and write a row if it is time to. All processes have to call this."""
        if not self._places or step <= self._last_step or not (last or step in self._moments):
            return
        self._last_step = step
        row = self._measure()
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")

    @torch.no_grad()
    def _measure(self) -> dict[str, Any]:
        """The columns of a row: figures by sample, and both models' log-probabilities."""
        distiller = self._trainer.distiller
        was_training = distiller.training
        distiller.eval()
        with _log_probabilities_seen_by(distiller.objective) as seen:
            samples = [self._figures(batch) for batch in self._batches()]
        distiller.train(was_training)
        joined = {name: list(itertools.chain.from_iterable(part[name] for part in samples)) for name in samples[0]}
        row: dict[str, Any] = {"samples": joined}
        if self._trainer.settings.cache:
            teacher, student = (np.concatenate(parts) for parts in zip(*seen, strict=True))
            row["log_probabilities"] = compared(teacher, student)
        return row

    def _batches(self) -> Iterator[dict[str, Any]]:
        """The samples in batches of the training's size, which its memory is known to hold."""
        dataset, size = self._trainer.train_dataset, self._trainer.settings.training.batch_size
        for start in range(0, len(self._places), size):
            items = [dataset[place] for place in self._places[start : start + size]]  # type: ignore[index]
            yield self._trainer._prepare_inputs(self._trainer.data_collator(items))

    def _figures(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One batch's columns, a value for each sample; None where a channel does not apply to it."""
        distiller = self._trainer.distiller
        figures = to_cpu(distiller(batch))
        columns = {
            "sample_id": list(batch["sample_ids"]),
            **{name: _rounded(figures[name]) for name in ("cross_entropy", "teacher_entropy", "student_entropy")},
        }
        for index, channel in enumerate(distiller.objective.channels):
            for kind, name in (("energies", "energy"), ("betas", "beta")):
                values = figures[kind][:, index].masked_fill(~figures["present"][:, index], torch.nan)
                columns[f"{name}/{channel}"] = _rounded(values)
        return columns


def compared(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> dict[str, Any]:
    """How two models' log-probabilities of the same entries `[M]` are distributed: means, Wasserstein-1, histograms."""
    distance = matching_distance(teacher, student)
    return {
        "num_entries": len(teacher),
        "teacher_mean": _number(distance.teacher_mean),
        "student_mean": _number(distance.student_mean),
        "wasserstein_1": _number(distance.wasserstein_1),
        "bin_edges": BIN_EDGES_NATS.tolist(),
        "teacher_counts": _histogram(teacher),
        "student_counts": _histogram(student),
    }


@contextlib.contextmanager
def _log_probabilities_seen_by(objective: nn.Module) -> Iterator[list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """A list that gets, for every batch that passes the objective, the teacher's and the student's log-probabilities
    `[M]` of the kept entries. Taken there, because a student in shards has its head together only then."""
    seen: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def look(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        hidden: Tensor = arguments[0]
        head: Head = arguments[1]
        targets: TeacherTargets = arguments[2]
        with torch.autocast(hidden.device.type, enabled=False):
            own = student_statistics(hidden, head, targets).log_probabilities()[targets.kept]
        theirs = targets.log_probabilities()[targets.kept]
        seen.append((theirs.double().cpu().numpy(), own.double().cpu().numpy()))

    handle = objective.register_forward_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _histogram(values: NDArray[np.float64]) -> list[int]:
    counts, _ = np.histogram(values.clip(BIN_EDGES_NATS[0], BIN_EDGES_NATS[-1]), BIN_EDGES_NATS)
    return [int(count) for count in counts]


def _rounded(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values.double().tolist()]


def _number(value: float) -> float | None:
    """The number as the file holds it; None, which is JSON, for one that is not finite."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None

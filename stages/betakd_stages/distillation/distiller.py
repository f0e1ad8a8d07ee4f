"""The module that is trained: the student, and beside it everything the objective learns."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from betakd_cache import FeatureLayout, Manifest
from betakd_stages.distillation.cached_targets import CachedBatch, decode_batch, labels_only
from betakd_stages.ensemble.names import plain
from betakd_stages.ensemble.records import TeacherEnsemble
from betakd_stages.models.forward import AnswerRows, answer_rows
from betakd_stages.objective import Objective, ObjectiveOutput
from betakd_stages.processes import index_and_count
from betakd_stages.statistics import Head


class Distiller(nn.Module):
    """A student and its objective under one roof, so that one wrapper (DDP, FSDP) sees every trained parameter.

    They are saved apart: nothing of the objective ends up in the student's checkpoint.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        objective: Objective,
        vocabulary_size: int,
        teacher: Manifest | TeacherEnsemble | None,
    ) -> None:
        """`teacher`: the manifest of the cache that batches are of, or several caches; None: labels only."""
        super().__init__()
        self.student = student
        # The classes of layers that FSDP2 gathers one after the other; families name some that a model may lack.
        classes = {type(module).__name__ for module in student.modules()}
        self._no_split_modules = sorted(classes.intersection(student._no_split_modules or ()))
        self.objective = objective
        self._vocabulary_size = vocabulary_size
        self.teacher = teacher
        # Of the student only what a feature channel compares; what a weighting sees are the teacher's features.
        self._layouts: dict[str, FeatureLayout] = {}
        if teacher is not None:
            of_teacher = teacher.layout if isinstance(teacher, TeacherEnsemble) else teacher.rules.layout
            self._layouts = {plain(name): of_teacher(name) for name in objective.features}

    def forward(self, batch: dict[str, Any]) -> ObjectiveOutput:
        """The objective of a batch made by `dataset.make_collator`."""
        rows = answer_rows(self.student, batch, self._layouts)
        cached = self.cached(batch, rows)
        head = self.student.get_output_embeddings()
        return self.objective(
            rows.hidden,
            Head(head.weight, head.bias),
            cached.targets,
            student_features=rows.features,
            teacher_features=cached.features,
            feature_present={name: held & rows.present.get(plain(name), held) for name, held in cached.present.items()},
            experts=cached.experts,
        )

    def cached(self, batch: dict[str, Any], rows: AnswerRows) -> CachedBatch:
        """What the teacher says of a batch's tokens; without one, the labels."""
        if self.teacher is None:
            targets = labels_only(rows.gold_ids, rows.sample_index, len(batch["has_image"]), self._vocabulary_size)
            return CachedBatch(targets, {}, {})
        if isinstance(self.teacher, TeacherEnsemble):
            return self.teacher.decode(batch["teacher"], rows.gold_ids.device)
        cached = decode_batch(batch["teacher"], self.teacher, rows.gold_ids.device)
        # The student's own labels: the same as the cache's, except where a control gives it other samples' records.
        targets = dataclasses.replace(cached.targets, gold_ids=rows.gold_ids, trust=batch.get("trust"))
        return dataclasses.replace(cached, targets=targets)


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers to a safetensors file; tied ones are written once each.

    Where several processes train, all have to call this, and the first one writes.
    """
    _save(whole_tensors(module.state_dict()), path)


def save_trained(module: nn.Module, path: Path) -> None:
    """Write what training changes, parameters with a gradient and buffers; the rest stays where it was read from.

    Where several processes train, all have to call this, and the first one writes.
    """
    _save(trained_tensors(module), path)


def trained_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What `save_trained` writes."""
    return whole_tensors(_changing(module))


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, gathered from all processes where each holds a shard."""
    values = {name: value.detach() for name, value in tensors.items()}
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in values.items()}
    return {name: value.cpu().clone().contiguous() for name, value in whole.items()}


def is_sharded(module: nn.Module) -> bool:
    """Whether each of several processes holds a part of every parameter (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if index_and_count()[0] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)


def load_trained(module: nn.Module, path: Path) -> None:
    """Restore what `save_trained` wrote. Raises RuntimeError where that is not what trains."""
    load_tensors(module, load_file(path))


def load_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put `trained_tensors` in their places. Raises RuntimeError where there are other names among them, or fewer."""
    changing = _changing(module)
    for verb, names in (("lack", changing.keys() - tensors.keys()), ("have besides", tensors.keys() - changing.keys())):
        if names:
            raise RuntimeError(f"the tensors {verb} {len(names)} of what trains, such as {min(names)}")
    module.load_state_dict(tensors, strict=False)


def _changing(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters with a gradient, and buffers. What packed weights add to a state, such as scales, is neither."""
    trained = {name for name, value in module.named_parameters(remove_duplicate=False) if value.requires_grad}
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name in trained | buffers}


def load_weights(module: nn.Module, path: Path) -> None:
    """Restore what `save_weights` wrote."""
    module.load_state_dict(load_file(path))


def to_cpu(output: ObjectiveOutput) -> dict[str, torch.Tensor]:
    """The figures of a batch worth logging, detached."""
    return {
        "objective": output.total.detach().cpu(),
        "count": output.count.detach().cpu(),
        "cross_entropy": output.cross_entropy.detach().cpu(),
        # One number expanded to all samples, where it is not learned: a checkpoint holds whole tensors only.
        "cross_entropy_weights": output.cross_entropy_weights.detach().cpu().contiguous(),
        "energies": output.energies.detach().cpu(),
        "present": output.present.detach().cpu(),
        "betas": output.betas.detach().cpu(),
        "teacher_entropy": output.teacher_entropy.detach().cpu(),
        "student_entropy": output.student_entropy.cpu(),
    }

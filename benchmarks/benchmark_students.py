"""The ways to train one student that the benchmark of steps compares."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel, Trainer, TrainingArguments

from betakd_cache import TeacherCache
from betakd_stages.data import load_samples
from betakd_stages.distillation.arguments import training_arguments
from betakd_stages.distillation.batches import RunBatches, StepShape
from betakd_stages.distillation.dataset import EncodedSamples
from betakd_stages.distillation.distiller import Distiller
from betakd_stages.distillation.preparation import build_student_objective
from betakd_stages.distillation.teaching import match_teachers
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.encoding import EncodedSample, Encoder, model_inputs
from betakd_stages.models.adapters import add_adapter
from betakd_stages.models.loading import LoadedModel
from betakd_stages.models.parts import freeze
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import AdapterSettings, DistillSettings


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to train the student."""

    step: Callable[[list[tuple[int, EncodedSample]]], Tensor]
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer

    def held_mib(self) -> float:
        """What lies in memory between steps, each tensor once."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = {id(value): value for value in (*self.parameters, *states) if isinstance(value, Tensor)}
        return sum(value.numel() * value.itemsize for value in tensors.values()) / 2**20


def settings_of(
    arguments: argparse.Namespace,
    data: str,
    student: LoadedModel,
    teacher: LoadedModel,
    cache: TeacherCache,
    folder: Path,
    dataset: EncodedSamples,
) -> dict[str, Setting]:
    """The four ways to train one student."""
    freeze(student.model, train_vision_tower=False, train_projector=True)
    add_adapter(student.model, AdapterSettings(kind=arguments.adapter))
    student.model.train()
    common = {"student": str(student.folder), "data": data}
    training = {
        "batch_size": arguments.batch_size,
        "precision": "bf16" if arguments.device == "cuda" else "fp32",
        "optimizer": "adamw_torch",
    }
    alone = {"objective": {"energies": []}, "training": training, **common}
    kinds = {"energies": ["fkl"], "features": ["vision", "prompt"]}
    whole = {"cache": "of the benchmark", "objective": kinds, "weighting": {"name": "instance"}, "training": training}
    ours = partial(our_setting, student=student, folder=folder, dataset=dataset)
    plain = plain_trainer(student.model, DistillSettings.model_validate(alone), folder)
    return {
        "a": Setting(
            lambda items: trainer_step(plain, student.model, with_labels(student.encoder, items, plain.args.device)),
            list(student.model.parameters()),
            plain.create_optimizer(),
        ),
        "b": ours(DistillSettings.model_validate(alone), caches=()),
        "c": ours(DistillSettings.model_validate({**whole, **common}), caches=(cache,)),
        "d": online_setting(student, teacher.model, plain),
    }


def plain_trainer(model: PreTrainedModel, settings: DistillSettings, folder: Path) -> Trainer:
    """transformers' Trainer as anybody would use it."""
    arguments: TrainingArguments = training_arguments(settings, folder, StepShape(1, 1, 1), 1000)
    return Trainer(model=model, args=arguments)


def our_setting(
    settings: DistillSettings,
    caches: Sequence[TeacherCache],
    *,
    student: LoadedModel,
    folder: Path,
    dataset: EncodedSamples,
) -> Setting:
    """What `distill` does in a step, with these settings."""
    teaching = match_teachers(settings, caches, load_samples(settings.data), student.encoder, folder, SilentProgress())
    objective = build_student_objective(settings, student, [cache.manifest for cache in caches])
    distiller = Distiller(student.model, objective, student.encoder.vocabulary_size, teaching.teacher)
    shape = StepShape(settings.training.batch_size, 1, 1)
    trainer = DistillationTrainer(
        distiller,
        settings,
        RunBatches(len(dataset), shape, num_steps=1000, process_index=0, seed=0),
        args=training_arguments(settings, folder, shape, 1000),
        train_dataset=dataset,
    )
    collate = teaching.collator(student.encoder, objective)
    return Setting(
        lambda items: trainer_step(trainer, distiller, collate(items)),
        list(distiller.parameters()),
        trainer.create_optimizer(),
    )


def online_setting(student: LoadedModel, teacher: PreTrainedModel, trainer: Trainer) -> Setting:
    """Cross-entropy and forward KL at the supervised tokens, both models' logits as their forward passes give them."""
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in student.model.parameters() if p.requires_grad], lr=4e-5)

    def step(items: list[tuple[int, EncodedSample]]) -> Tensor:
        batch = with_labels(student.encoder, items, trainer.args.device)
        supervised = batch["labels"][:, 1:] >= 0
        inputs = model_inputs(batch)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            of_teacher = log_softmax(teacher(**inputs).logits[:, :-1][supervised].float(), dim=1)
        with trainer.compute_loss_context_manager():
            output = student.model(**inputs, labels=batch["labels"])
        of_student = log_softmax(output.logits[:, :-1][supervised].float(), dim=1)
        loss = output.loss + kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Setting(step, [*student.model.parameters(), *teacher.parameters()], optimizer)


def with_labels(encoder: Encoder, items: list[tuple[int, EncodedSample]], device: torch.device) -> dict[str, Tensor]:
    batch = encoder.collate([encoded for _, encoded in items])
    wanted = {**model_inputs(batch), "labels": batch["labels"]}
    return {name: value.to(device) for name, value in wanted.items()}


def trainer_step(trainer: Trainer, model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """A Trainer's optimizer step of one batch, as its loop makes it."""
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(model, batch, count)
    trainer._clip_grad_norm(model)
    assert trainer.optimizer is not None
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if isinstance(trainer, DistillationTrainer):
        trainer.take_figures()
    return loss

"""Gradient checkpointing: the same losses and gradients from layers that run twice, in every way to train."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.stages.mobilevlm.published import TINY_STUDENT, write_published
from tests.stages.test_adapters import batch_of, instance_weighted
from tests.stages.test_training import INSTANCE, TRAINING, assert_same_run
from tests.world import World
from torch import Tensor, nn

from betakd_cache import FeatureLayout
from betakd_stages.data.sample import LoadedImage, Sample, Turn
from betakd_stages.distillation.run import distill
from betakd_stages.distillation.student import load_student
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import LoadedModel
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

DROPOUT = {"rank": 4, "dropout": 0.3}


@dataclass(frozen=True, slots=True)
class Gradients:
    """What one forward and backward pass gives, and how often each layer's attention ran in it."""

    loss: Tensor
    by_name: dict[str, Tensor]
    num_runs: dict[str, int]


def settings(student: Path, **changes: Any) -> DistillSettings:
    objective: dict[str, Any] = {"energies": [], "features": []}
    common = {"student": str(student), "data": "digits:transfer?count=8", "objective": objective}
    return DistillSettings.model_validate({**common, **changes})


def loaded(student: Path, checkpointing: bool, adapter: dict[str, Any], **training: Any) -> LoadedModel:
    """A student to train whose adapters, drawn anew, are the same for the same arguments."""
    training = {**training, "gradient_checkpointing": checkpointing}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        student_to_train = load_student(settings(student, adapter=adapter, training=training))
        for name, parameter in student_to_train.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return student_to_train


def gradients_of(student: LoadedModel, loss_of: Callable[[LoadedModel], Tensor]) -> Gradients:
    model = student.model
    num_runs: dict[str, int] = {}

    def count(name: str) -> None:
        num_runs[name] = num_runs.get(name, 0) + 1

    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_pre_hook(lambda *_, name=name: count(name))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        loss = loss_of(student)
        loss.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert all(value.requires_grad for name, value in model.named_parameters() if name in found)
    return Gradients(loss.detach(), found, num_runs)


def assert_checkpointing_changes_nothing(
    folder: Path, loss_of: Callable[[LoadedModel], Tensor], adapter: dict[str, Any], **training: Any
) -> dict[str, int]:
    """How often each layer's attention ran with checkpointing; each ran once without."""
    plain, less_memory = (
        gradients_of(loaded(folder, checkpointing, adapter, **training), loss_of) for checkpointing in (False, True)
    )
    assert set(plain.num_runs.values()) == {1}
    torch.testing.assert_close(less_memory.loss, plain.loss)
    assert less_memory.by_name.keys() == plain.by_name.keys()
    for name, gradient in plain.by_name.items():
        torch.testing.assert_close(less_memory.by_name[name], gradient, atol=1e-7, rtol=1e-5, msg=name)
    assert max(float(gradient.abs().max()) for gradient in plain.by_name.values()) > 1e-3
    return less_memory.num_runs


def objective_of(world: World) -> Callable[[LoadedModel], Tensor]:
    """Labels, forward KL, vision and prompt features, weighted per sample."""
    return lambda student: instance_weighted(world, student).train()(batch_of(world, student)).total


@pytest.mark.parametrize(
    "adapter", [{}, {"kind": "lora", **DROPOUT}, {"kind": "qlora", **DROPOUT}], ids=["whole", "lora", "qlora"]
)
def test_a_llava_student_has_the_same_gradients_and_its_frozen_tower_runs_once(
    world: World, adapter: dict[str, Any]
) -> None:
    """Dropout draws the same numbers again."""
    num_runs = assert_checkpointing_changes_nothing(world.student, objective_of(world), adapter)
    assert num_runs == {name: 1 if "vision_tower" in name else 2 for name in num_runs}
    assert len(num_runs) == 3


def test_a_tower_that_trains_is_checkpointed_too(world: World) -> None:
    num_runs = assert_checkpointing_changes_nothing(world.student, objective_of(world), {}, train_vision_tower=True)
    assert set(num_runs.values()) == {2}


@dataclass(frozen=True, slots=True)
class Grey:
    """An image that needs no file."""

    def load(self) -> LoadedImage:
        return LoadedImage(Image.new("RGB", (24, 20), (90, 10, 190)), self.sha256())

    def sha256(self) -> str:
        return "sha"


@pytest.mark.parametrize("adapter", [{}, {"kind": "lora", **DROPOUT}], ids=["whole", "lora"])
def test_a_mobilevlm_student_has_the_same_gradients(tmp_path: Path, adapter: dict[str, Any]) -> None:
    """Of its last hidden states and of the visual tokens that enter its language model."""
    folder = write_published(tmp_path / "student", TINY_STUDENT)
    samples = [Sample(name, image, (Turn("What?", "A cat."),)) for name, image in (("a", Grey()), ("b", None))]

    def loss_of(student: LoadedModel) -> Tensor:
        batch = student.encoder.collate([student.encoder.encode(sample) for sample in samples])
        rows = answer_rows(student.model, batch, {"vision": FeatureLayout(), "prompt": FeatureLayout()})
        return rows.hidden.sin().sum() + torch.stack([each.cos().sum() for each in rows.features.values()]).sum()

    num_runs = assert_checkpointing_changes_nothing(folder, loss_of, adapter)
    assert num_runs == {name: 1 if "vision_tower" in name else 2 for name in num_runs}


def test_a_run_with_checkpointing_ends_as_one_without(world: World, tmp_path: Path) -> None:
    """Greedy answers between the steps included."""
    for name, checkpointing in (("plain", False), ("less memory", True)):
        training = {**TRAINING, "steps": 3, "gradient_checkpointing": checkpointing, "evaluate_every_steps": 2}
        asked = settings(
            world.student,
            cache=str(world.cache),
            data=world.data,
            validation="digits:transfer?count=4&seed=5",
            training=training,
            **INSTANCE,
        )
        distill(asked, tmp_path / name, progress=SilentProgress())
    assert_same_run(tmp_path / "plain", tmp_path / "less memory")

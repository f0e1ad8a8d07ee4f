"""Students that compute in 16 bits: bf16 for all of them, fp16 with a scaled loss, simulated where there is no GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.stages.mobilevlm.published import TINY_STUDENT, TINY_TEACHER, tensor_shapes, write_published
from tests.stages.photos import write_photos
from tests.stages.test_training import TRAINING, Interrupt, assert_same_run, settings
from tests.world import World
from torch import nn

from betakd_stages.caching.run import cache_teacher
from betakd_stages.distillation import preparation
from betakd_stages.distillation.dry_run import dry_run
from betakd_stages.distillation.precision import SMALLEST_LOSS_SCALE, loss_scale, require_precision
from betakd_stages.distillation.run import distill
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.models.loading import load_model
from betakd_stages.models.placement import COMPUTE_TYPES
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

FIRST_SCALE = 2.0**26


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_trained_alike(rounded: Path, exact: Path) -> None:
    """Each logged objective of the first, which computes in 16 bits, is nearly the second's; both save fp32."""
    found, expected = ([row["objective"] for row in rows(run)] for run in (rounded, exact))
    assert found != expected
    assert found == pytest.approx(expected, rel=0.02)
    assert {value.dtype for value in load_file(rounded / "model" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["none", "dora", "qlora"])
def test_a_student_trains_in_bf16_nearly_as_in_fp32(world: World, tmp_path: Path, kind: str) -> None:
    for precision in ("bf16", "fp32"):
        training = {**TRAINING, "steps": 4, "log_every_steps": 2, "precision": precision}
        asked = settings(world, training=training, adapter={"kind": kind, "rank": 4})
        distill(asked, tmp_path / precision, progress=SilentProgress())
    assert_trained_alike(tmp_path / "bf16", tmp_path / "fp32")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_dry_run_computes_in_the_precision_of_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    computed = set()
    layer = type(load_model(world.student).model.get_decoder().layers[0].mlp)
    forward = layer.forward

    def noted(self: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = forward(self, hidden)
        computed.add(output.dtype)
        return output

    monkeypatch.setattr(layer, "forward", noted)
    asked = settings(world, training={**TRAINING, "precision": precision})
    dry_run(asked, progress=SilentProgress())
    # Before that, the model was loaded and looked at in fp32.
    assert computed == {torch.float32, COMPUTE_TYPES[precision]}


def test_a_mobilevlm_student_trains_in_bf16_with_adapters_and_checkpointed_layers(tmp_path: Path) -> None:
    teacher = write_published(tmp_path / "teacher", TINY_TEACHER, seed=1)
    student = write_published(tmp_path / "student", TINY_STUDENT, seed=2)
    data = write_photos(tmp_path)
    cache = tmp_path / "cache"
    cache_teacher(CacheTeacherSettings(teacher=str(teacher), data=data), cache, progress=SilentProgress())
    for precision in ("bf16", "fp32"):
        training = {**TRAINING, "steps": 3, "batch_size": 4, "precision": precision, "gradient_checkpointing": True}
        asked = {"student": str(student), "cache": str(cache), "data": data, "training": training}
        objective = {"energies": ["fkl"], "features": ["vision", "prompt"]}
        more = {"objective": objective, "adapter": {"kind": "lora", "rank": 2}}
        distill(DistillSettings.model_validate({**asked, **more}), tmp_path / precision, progress=SilentProgress())
    assert_trained_alike(tmp_path / "bf16", tmp_path / "fp32")
    written = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in written.items()} == tensor_shapes(TINY_STUDENT)


class ScaledOnTheCpu(DistillationTrainer):
    """With what accelerate sets up for fp16 on a GPU, and a first scale that is far too large."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        assert self.accelerator.mixed_precision == "fp16"
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE)


@pytest.fixture
def fp16_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "require_precision", lambda settings: None)
    monkeypatch.setattr(preparation, "DistillationTrainer", ScaledOnTheCpu)


@pytest.mark.usefixtures("fp16_on_the_cpu")
def test_in_fp16_steps_without_finite_gradients_are_left_out_until_the_scale_fits(world: World, tmp_path: Path) -> None:
    """The objective is finite all the time, so the run goes on; interrupted, it does so with the scale it had."""
    training = {**TRAINING, "steps": 16, "log_every_steps": 4, "precision": "fp16"}
    asked = settings(world, training=training)
    distill(asked, tmp_path / "whole", progress=SilentProgress())
    scales = [row["loss_scale"] for row in rows(tmp_path / "whole")]
    assert scales[0] == FIRST_SCALE / 2**4
    assert scales[-1] > FIRST_SCALE / 2**16
    assert scales == sorted(scales, reverse=True)
    objectives = [row["objective"] for row in rows(tmp_path / "whole")]
    assert objectives[-1] < objectives[0]
    with pytest.raises(KeyboardInterrupt):
        distill(asked, tmp_path / "cut", progress=Interrupt(6))
    distill(asked, tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_whose_gradients_are_never_finite_in_fp16_stops() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=SMALLEST_LOSS_SCALE)
    assert loss_scale(None) == {}
    assert loss_scale(scaler) == {"loss_scale": SMALLEST_LOSS_SCALE}
    with pytest.raises(MismatchError) as caught:
        loss_scale(torch.amp.GradScaler("cpu", init_scale=SMALLEST_LOSS_SCALE / 2))
    assert str(caught.value) == (
        "the gradients are not finite in fp16 even with the loss scaled by 4.9e-04, step after step: use "
        "training.precision bf16 or fp32"
    )


def test_fp16_without_a_gpu_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = settings(world, training={**TRAINING, "precision": "fp16"})
    with pytest.raises(ConfigError) as caught:
        distill(asked, tmp_path / "run", progress=SilentProgress())
    assert str(caught.value) == "training.precision fp16 needs a GPU: use bf16, which runs anywhere, or fp32"
    assert not (tmp_path / "run").exists()


def test_bf16_on_a_gpu_without_it_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ConfigError) as caught:
        require_precision(settings(world, training={**TRAINING, "precision": "bf16"}))
    assert str(caught.value) == "training.precision is bf16, which this GPU does not have: use fp16 or fp32"


@pytest.mark.parametrize("weighting", ["gradnorm", "pcgrad"])
def test_fp16_with_a_weighting_that_takes_gradients_apart_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = settings(world, training={**TRAINING, "precision": "fp16"}, weighting={"name": weighting})
    with pytest.raises(ConfigError) as caught:
        require_precision(asked)
    assert str(caught.value) == (
        f"weighting {weighting} takes gradients of the loss as it is, but fp16 needs a scaled one: use "
        "training.precision bf16 or fp32, or another weighting"
    )

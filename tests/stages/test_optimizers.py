"""The optimizer by name, and the projector's own learning rate."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.stages.test_training import TRAINING, Interrupt, assert_same_run
from tests.world import World
from transformers import TrainingArguments

from betakd_stages.distillation.distiller import trained_parameters
from betakd_stages.distillation.optimizers import optimizer_class_and_options, optimizer_name, student_groups
from betakd_stages.distillation.run import distill
from betakd_stages.errors import ConfigError
from betakd_stages.models.loading import load_model
from betakd_stages.models.parts import freeze, parameters_by_part
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings, TrainingSettings


def run_settings(world: World, **training: Any) -> DistillSettings:
    common = {"student": str(world.student), "cache": str(world.cache), "data": world.data}
    return DistillSettings.model_validate({**common, "training": {**TRAINING, **training}})


def moved(world: World, run: Path, part: str) -> float:
    """The largest change of a weight whose name holds `part`."""
    before, after = (load_file(folder / "model.safetensors") for folder in (world.student, run / "model"))
    return max(float((after[name] - value).abs().max()) for name, value in before.items() if part in name)


def test_the_projector_learns_at_its_own_rate(world: World, tmp_path: Path) -> None:
    """Adam's first step moves a weight by the learning rate."""
    settings = run_settings(world, steps=1, warmup=0, schedule="constant", projector_learning_rate=1e-5)
    distill(settings, tmp_path / "run", progress=SilentProgress())
    assert moved(world, tmp_path / "run", "multi_modal_projector") == pytest.approx(1e-5, rel=0.05)
    assert moved(world, tmp_path / "run", "language_model") == pytest.approx(1e-3, rel=0.05)


def test_every_parameter_that_trains_is_in_one_group_and_only_matrices_decay(world: World) -> None:
    model = load_model(world.student).model
    freeze(model, train_vision_tower=True, train_projector=True)
    groups = student_groups(model, TrainingSettings(projector_learning_rate=1e-5, weight_decay=0.1))
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(trained_parameters(model))
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in trained_parameters(model)}
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.1}
    apart = {id(parameter) for group in groups if group.get("lr") == 1e-5 for parameter in group["params"]}
    assert apart == {id(parameter) for parameter in parameters_by_part(model)["projector"].values()}


def test_without_a_rate_of_its_own_the_projector_is_with_the_rest(world: World) -> None:
    model = load_model(world.student).model
    groups = student_groups(model, TrainingSettings())
    assert len(groups) == 2
    assert not any("lr" in group for group in groups)


def test_a_rate_for_a_projector_that_does_not_train_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="projector_learning_rate is given, but train_projector is false: leave one"):
        TrainingSettings(projector_learning_rate=1e-5, train_projector=False)
    model = load_model(world.student).model
    for parameter in parameters_by_part(model)["projector"].values():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="is 1e-05, but no projector of model type 'llava' trains: leave it out"):
        student_groups(model, TrainingSettings(projector_learning_rate=1e-5))


def test_plain_gradient_descent_moves_weights_by_rate_times_gradient(world: World, tmp_path: Path) -> None:
    """SGD has no state that scales: half the rate, half the first step; Adam's would be the rate itself."""
    once = {"optimizer": "sgd", "steps": 1, "warmup": 0, "schedule": "constant", "max_gradient_norm": 0.0}
    for name, rate in (("one", 1e-2), ("half", 5e-3)):
        distill(run_settings(world, **once, learning_rate=rate), tmp_path / name, progress=SilentProgress())
    one, half = (moved(world, tmp_path / name, "lm_head") for name in ("one", "half"))
    assert one == pytest.approx(2 * half, rel=1e-3)
    assert abs(one / 1e-2 - 1) > 0.05


def test_a_run_with_adafactor_resumes_to_the_same_bytes(world: World, tmp_path: Path) -> None:
    settings = run_settings(world, optimizer="adafactor", projector_learning_rate=1e-4)
    distill(settings, tmp_path / "whole", progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        distill(settings, tmp_path / "cut", progress=Interrupt(7))
    distill(settings, tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_default_is_transformers_own(tmp_path: Path) -> None:
    assert TrainingSettings().optimizer == TrainingArguments(output_dir=str(tmp_path)).optim


@pytest.mark.parametrize("name", ["adam", "schedule_free_adamw", "ADAMW_TORCH"])
def test_a_name_that_is_no_optimizer_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=f"training.optimizer is '{name}': choose adamw_torch, adamw_torch_fused"):
        optimizer_name(name)


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_8bit", "paged_lion_32bit"])
def test_an_optimizer_without_its_package_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        distill(run_settings(world, optimizer=name), tmp_path / "run", progress=SilentProgress())
    assert str(caught.value) == (
        f"training.optimizer {name} cannot be had here (You need to install `bitsandbytes` in order to use "
        "bitsandbytes optimizers: `pip install -U bitsandbytes`): add what it needs, or leave it out"
    )
    assert not (tmp_path / "run").exists()


def test_eight_bit_optimizers_are_those_of_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package: that the name, the page flag and the bits reach it."""
    stand_in = SimpleNamespace(AdamW=torch.optim.AdamW, Lion=object, RMSprop=object)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=stand_in))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", stand_in)
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: True)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=optimizer_name("paged_adamw_8bit"))
    optimizer, options = optimizer_class_and_options(arguments)
    assert optimizer is torch.optim.AdamW
    assert (options["is_paged"], options["optim_bits"]) == (True, 8)

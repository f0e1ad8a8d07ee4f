"""Optimizers of bitsandbytes, where tensors are large enough (4,096 numbers) for states of 8 bits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.test_training import TRAINING, Interrupt, assert_same_run
from tests.world import World
from torch import Tensor

from betakd_stages.distillation.run import distill
from betakd_stages.models.loading import load_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings


def settings(world: World, optimizer: str) -> DistillSettings:
    """The world's teacher as a student of its own cache: it is the one with large tensors."""
    training = {**TRAINING, "steps": 6, "checkpoint_every_steps": 2, "learning_rate": 1e-4, "optimizer": optimizer}
    common = {"student": str(world.teacher), "cache": str(world.cache), "data": world.data, "training": training}
    return DistillSettings.model_validate({**common, "objective": {"energies": ["fkl"]}})


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors in a dict of dicts: bitsandbytes wraps its states once more."""
    if isinstance(nested, dict):
        return [tensor for value in nested.values() for tensor in tensors_in(value)]
    return [nested] if isinstance(nested, Tensor) else []


def last_objective(run: Path) -> float:
    return float(json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["objective"])


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw_bnb_8bit", 2), ("lion_8bit", 1)])
def test_states_have_8_bits_and_a_resumed_run_ends_as_the_uninterrupted_one(
    world: World, tmp_path: Path, optimizer: str, moments: int
) -> None:
    asked = settings(world, optimizer)
    distill(asked, tmp_path / "whole", progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        distill(asked, tmp_path / "cut", progress=Interrupt(5))
    written = tmp_path / "cut" / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    states = torch.load(written, weights_only=True)["state"]
    large = [value for value in load_model(world.teacher).model.get_decoder().parameters() if value.numel() >= 4096]
    packed = [tensor for tensor in tensors_in(states) if tensor.dtype == torch.uint8]
    assert sum(tensor.numel() for tensor in packed) >= moments * sum(value.numel() for value in large) > 0
    assert min(tensor.numel() for tensor in packed) >= 4096
    distill(asked, tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_adamw_with_8_bits_trains_nearly_as_with_32(world: World, tmp_path: Path) -> None:
    for optimizer in ("adamw_bnb_8bit", "adamw_torch"):
        distill(settings(world, optimizer), tmp_path / optimizer, progress=SilentProgress())
    found, expected = (last_objective(tmp_path / optimizer) for optimizer in ("adamw_bnb_8bit", "adamw_torch"))
    assert found != expected
    assert found == pytest.approx(expected, rel=0.01)

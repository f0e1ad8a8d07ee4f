"""Keeping the best of a student with adapters: which step's adapters are merged, resumed or not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.stages.test_adapters import run_settings
from tests.stages.test_training import TRAINING, Interrupt, assert_same_run
from tests.world import World
from torch import Tensor

from betakd_stages.distillation import run as stage_two
from betakd_stages.distillation.run import distill
from betakd_stages.models.loading import LoadedModel
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

STEADY = {**TRAINING, "steps": 6, "checkpoint_every_steps": 3, "warmup": 0.0, "schedule": "constant"}
DATA = "digits:transfer?count=8&seed=5"


BEST = 3


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.detach().double().norm() for name, value in tensors.items() if "lora_B" in name]).sum()


def settings(world: World, kind: str, **training: Any) -> DistillSettings:
    adapter = {"kind": kind, "rank": 4, "dropout": 0.1}
    return run_settings(world, adapter=adapter, training={**STEADY, **training}, validation=DATA)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_the_best_steps_adapters_are_merged_and_a_resumed_run_merges_the_same(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The best is the step after which a shorter run ended."""
    distill(settings(world, kind, steps=BEST), tmp_path / "ended", progress=SilentProgress())
    target = norm(load_file(tmp_path / "ended" / "adapter" / "adapter_model.safetensors"))

    def measure(student: LoadedModel, *_: object) -> float:
        return 100 - float((norm(dict(student.model.named_parameters())) - target).abs())

    monkeypatch.setattr(stage_two, "validation_accuracy", measure)
    asked = settings(world, kind, evaluate_every_steps=1, keep_best=True)
    summary = distill(asked, tmp_path / "whole", progress=SilentProgress())
    assert summary.final_metrics["kept_step"] == BEST
    kept, ended = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "ended"))
    assert kept.keys() == ended.keys()
    for name, value in ended.items():
        assert torch.equal(kept[name], value), name

    with pytest.raises(KeyboardInterrupt):
        distill(asked, tmp_path / "cut", progress=Interrupt(5))
    distill(asked, tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "cut" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()

"""Runs that sample their posterior: what they leave, that the run stays what it was, kills, and what is refused."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tests.stages.test_training import TRAINING, Interrupt, assert_same_run
from tests.world import World
from torch import Tensor

from betakd_stages.distillation.distiller import load_tensors
from betakd_stages.distillation.dry_run import dry_run
from betakd_stages.distillation.preparation import prepare
from betakd_stages.distillation.run import distill
from betakd_stages.errors import ConfigError, MismatchError, ModelError
from betakd_stages.models.loading import load_model
from betakd_stages.posterior import refusals
from betakd_stages.posterior.snapshot_files import mixed, save_tensors, snapshot_paths
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

POSTERIOR = {"count": 3, "every_steps": 2, "learning_rate": 1e-3}
NUM_SAMPLES = 48


def settings(world: World, **changes: Any) -> DistillSettings:
    """A short run with an energy that counts steps and weights that are learned."""
    common = {"student": str(world.student), "cache": str(world.cache), "data": world.data, "training": TRAINING}
    return DistillSettings.model_validate(
        {**common, "objective": {"energies": ["taid", "fkl"]}, "posterior": POSTERIOR, **changes}
    )


def snapshots_of(run: Path) -> list[dict[str, Tensor]]:
    """The student that the run ended with, and its snapshots."""
    return [load_file(path) for path in (run / "posterior" / "map.safetensors", *snapshot_paths(run / "posterior"))]


@pytest.fixture(scope="module")
def sampled(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that sampled its posterior."""
    run = tmp_path_factory.mktemp("sampled") / "run"
    distill(settings(world), run, progress=SilentProgress())
    return run


def test_sampling_leaves_the_run_as_it_is_without_and_snapshots_around_its_student(
    world: World, sampled: Path, tmp_path: Path
) -> None:
    distill(settings(world, posterior={}), tmp_path / "plain", progress=SilentProgress())
    assert_same_run(tmp_path / "plain", sampled)
    for name in ("result.json", "model/config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (sampled / name).read_bytes()
    assert not (tmp_path / "plain" / "posterior").exists()
    assert not (sampled / "checkpoints").exists()
    trained, *snapshots = snapshots_of(sampled)
    saved = load_model(sampled).model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trained.items())
    assert not [name for name in trained if "vision_tower" in name and name.endswith("weight")]
    assert len(snapshots) == 3
    matrix = "model.multi_modal_projector.linear_1.weight"
    distances = [float((snapshot[matrix] - trained[matrix]).norm()) for snapshot in snapshots]
    assert 0 < distances[0] < distances[1] < distances[2]  # a walk that has just begun


@pytest.mark.parametrize(("after", "num_snapshots"), [(13, 0), (16, 1)])
def test_killed_while_it_samples_it_goes_on_to_the_same_bytes(
    world: World, sampled: Path, tmp_path: Path, after: int, num_snapshots: int
) -> None:
    """Of twelve steps of the run and six behind them: before the first snapshot, and behind it."""
    with pytest.raises(KeyboardInterrupt):
        distill(settings(world), tmp_path / "cut", progress=Interrupt(after))
    assert not (tmp_path / "cut" / "model").exists()
    assert len(snapshot_paths(tmp_path / "cut" / "posterior")) == num_snapshots
    distill(settings(world), tmp_path / "cut", progress=SilentProgress())
    assert_same_run(sampled, tmp_path / "cut")
    for whole, cut in zip(snapshots_of(sampled), snapshots_of(tmp_path / "cut"), strict=True):
        assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_snapshots_are_not_gone_on_with_around_another_student(world: World, tmp_path: Path) -> None:
    student = shutil.copytree(world.student, tmp_path / "student")
    chosen = settings(world, student=str(student))
    with pytest.raises(KeyboardInterrupt):
        distill(chosen, tmp_path / "run", progress=Interrupt(16))
    (weights,) = student.glob("*.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    before = (tmp_path / "run" / "posterior" / "map.safetensors").read_bytes()
    with pytest.raises(ModelError, match=f"{student} is not the student that .*/run/posterior was sampled around"):
        distill(chosen, tmp_path / "run", progress=SilentProgress())
    assert (tmp_path / "run" / "posterior" / "map.safetensors").read_bytes() == before


def test_a_step_is_the_gradient_of_the_mean_objective_and_noise_for_all_samples(world: World, tmp_path: Path) -> None:
    rate, fixed = 1e-2, {"objective": {"energies": ["fkl"]}, "weighting": {"name": "fixed"}}
    training = {**TRAINING, "steps": 2, "batch_size": NUM_SAMPLES}
    taken = {}
    for temperature in (0.0, 1.0):
        posterior = {"count": 2, "every_steps": 1, "learning_rate": rate, "temperature": temperature}
        chosen = settings(world, **fixed, training=training, posterior=posterior)
        distill(chosen, tmp_path / str(temperature), progress=SilentProgress())
        trained, taken[temperature], _ = snapshots_of(tmp_path / str(temperature))
    prepared = prepare(chosen, tmp_path / "new")
    load_tensors(prepared.student.model, trained)
    output = prepared.distiller(prepared.collate([prepared.dataset[place] for place in range(NUM_SAMPLES)]))
    (output.total / NUM_SAMPLES).backward()
    noise = []
    for name, parameter in prepared.student.model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            expected = trained[name] - rate * parameter.grad
            torch.testing.assert_close(taken[0.0][name], expected, atol=1e-6, rtol=1e-4)
            noise.append((taken[1.0][name] - expected).flatten())
    assert float(torch.cat(noise).std()) == pytest.approx(math.sqrt(2 * rate / NUM_SAMPLES), rel=0.02)


def test_of_adapters_only_what_trains_is_kept_and_the_run_merges_what_it_ended_with(
    world: World, tmp_path: Path
) -> None:
    chosen = {"adapter": {"kind": "lora", "rank": 2}, "training": {**TRAINING, "train_projector": False}}
    distill(settings(world, **chosen, posterior={}), tmp_path / "plain", progress=SilentProgress())
    distill(settings(world, **chosen), tmp_path / "run", progress=SilentProgress())
    assert_same_run(tmp_path / "plain", tmp_path / "run")
    trained, first, *_ = snapshots_of(tmp_path / "run")
    adapters = [name for name in trained if "lora_" in name]
    assert adapters
    assert not [name for name in trained if "lora_" not in name and not torch.equal(trained[name], first[name])]
    assert all(not torch.equal(trained[name], first[name]) for name in adapters)


def test_snapshots_are_mixed_in_float64_and_whole_numbers_are_left_alone(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for index, path in enumerate(paths):
        save_tensors({"weight": torch.tensor(weights[index]), "count": torch.tensor([index + 5])}, path)
    found = mixed(paths, [0.5, 0.75, -0.25])
    expected = np.array([0.5, 0.75, -0.25]) @ weights.astype(np.float64)
    np.testing.assert_array_equal(found["weight"].numpy(), expected.astype(np.float32))
    assert found["weight"].dtype == torch.float32
    assert found["count"].tolist() == [5]


def test_a_learning_rate_that_blows_up_is_one_line(world: World, tmp_path: Path) -> None:
    chosen = settings(world, posterior={"count": 2, "every_steps": 3, "learning_rate": 1e38})
    with pytest.raises(MismatchError, match="the objective is not finite .*lower the learning rate"):
        distill(chosen, tmp_path / "run", progress=SilentProgress())
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting": {"name": "pcgrad"}}, "posterior.count is 3, but the gradients that weighting pcgrad combines"),
        (
            {"objective": {"reduction": "token"}},
            "posterior.count is 3, but objective.reduction is token: .* use sample",
        ),
    ],
)
def test_what_has_no_posterior_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(settings(world, **changes), tmp_path / "run", progress=SilentProgress())
    assert not (tmp_path / "run").exists()


def test_several_processes_and_scaled_gradients_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="posterior.count is 3, but fp16 scales the gradients: use .* bf16 or fp32"):
        refusals.require_posterior(settings(world, training={**TRAINING, "precision": "fp16"}))
    monkeypatch.setattr(refusals, "index_and_count", lambda: (0, 2))
    with pytest.raises(ConfigError, match="but one process can sample it and 2 were started: start one"):
        refusals.require_posterior(settings(world))
    refusals.require_posterior(settings(world, posterior={}))


def test_a_dry_run_counts_the_steps_behind_the_last(world: World) -> None:
    cost = dry_run(settings(world), progress=SilentProgress())
    assert cost.hours * 3600 / cost.seconds_per_step == pytest.approx(12 + 3 * 2)


def test_one_snapshot_is_no_spread(world: World) -> None:
    with pytest.raises(ValidationError, match="count is 1, but a spread needs at least 2 snapshots"):
        settings(world, posterior={"count": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [("every_steps", 7), ("learning_rate", 0.5), ("temperature", 0.5), ("prior_deviation", 0.02)],
)
def test_how_to_sample_is_refused_where_nothing_is_sampled(world: World, name: str, value: float) -> None:
    with pytest.raises(
        ValidationError, match=f"{name} is {value}, but count is 0, .*: give count, or leave {name} out"
    ):
        settings(world, posterior={name: value})
    without = settings(world, posterior={})
    assert DistillSettings.model_validate(without.model_dump(mode="json")) == without  # as a run's settings are kept

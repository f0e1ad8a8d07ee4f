"""Trackers: what reaches TensorBoard and Weights & Biases over a run that was interrupted, and what is refused."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.stages.test_training import TRAINING, Interrupt
from tests.world import World

from betakd_stages.distillation.run import distill
from betakd_stages.errors import ConfigError
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

FAKE_WANDB = '''"""Stands in for wandb: notes what it is given."""
calls = []
run = None


class Run:
    summary: dict = {}

    def _label(self, **kwargs):
        pass


class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)


config = Config()


def init(**kwargs):
    global run
    run = Run()
    calls.append(("init", kwargs))


def log(row):
    calls.append(("log", row))


def finish():
    global run
    run = None
    calls.append(("finish", None))
'''


def settings(world: World, *trackers: str) -> DistillSettings:
    return DistillSettings.model_validate(
        {
            "student": str(world.student),
            "cache": str(world.cache),
            "data": world.data,
            "validation": "digits:validation?count=8",
            "objective": {"energies": ["fkl"]},
            "weighting": {"name": "instance"},
            "training": {**TRAINING, "steps": 8, "evaluate_every_steps": 4, "report_to": trackers},
        }
    )


def run_in_two_sessions(asked: DistillSettings, out: Path) -> None:
    """The first ends after step 7, three steps after its checkpoint and one after a row of metrics."""
    with pytest.raises(KeyboardInterrupt):
        distill(asked, out, progress=Interrupt(7))
    distill(asked, out, progress=SilentProgress())


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


def test_tensorboard_shows_every_figure_of_every_row_once_and_the_run_stays_the_same(
    world: World, tmp_path: Path
) -> None:
    run_in_two_sessions(settings(world, "tensorboard"), tmp_path / "shown")
    distill(settings(world), tmp_path / "plain", progress=SilentProgress())
    for name in ("metrics.jsonl", "validation.jsonl", "result.json", "model/model.safetensors"):
        assert (tmp_path / "shown" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    events = EventAccumulator(str(tmp_path / "shown" / "tensorboard")).Reload()
    metrics = rows(tmp_path / "shown", "metrics.jsonl")
    assert [row["step"] for row in metrics] == [3, 6, 8]
    for name in metrics[-1].keys() - {"step"}:
        expected = {row["step"]: row[name] for row in metrics if row[name] is not None}
        tag = f"train/{name}"  # a figure that is never defined has none
        found = events.Scalars(tag) if tag in events.Tags()["scalars"] else []
        assert [event.step for event in found] == list(expected), name
        assert [event.value for event in found] == pytest.approx(list(expected.values()), rel=1e-6), name
    assert [event.step for event in events.Scalars("train/tokens_per_second")] == [3, 6, 8]
    measured = [(row["step"], row["validation_accuracy"]) for row in rows(tmp_path / "shown", "validation.jsonl")]
    assert [(event.step, event.value) for event in events.Scalars("eval/accuracy")] == measured


def test_checkpoints_do_not_grow_with_what_was_shown(world: World, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(settings(world, "tensorboard"), tmp_path / "run", progress=Interrupt(5))
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["log_history"] == []


def test_weights_and_biases_gets_one_run_with_the_settings_over_both_sessions(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is a stand-in that has what transformers' callback and ours use of it."""
    package = tmp_path / "packages" / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_WANDB)
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    asked, out = settings(world, "wandb"), tmp_path / "run"
    run_in_two_sessions(asked, out)
    calls = sys.modules.pop("wandb").calls
    for name in [name for name in sys.modules if name.startswith("wandb.")]:
        del sys.modules[name]
    first, second = (given for name, given in calls if name == "init")
    assert first == second
    assert (first["name"], first["dir"], first["resume"], first["project"]) == ("run", out, "allow", "betakd-pipe")
    assert first["config"] == asked.model_dump(mode="json")
    logged = [row for name, row in calls if name == "log"]
    last = rows(out, "metrics.jsonl")[-1]
    assert any(row.get("train/objective") == last["objective"] for row in logged)
    assert [row["train/global_step"] for row in logged if "eval/accuracy" in row] == [4, 8]
    assert calls[-1] == ("finish", None)


def refused(world: World, out: Path, *trackers: str) -> str:
    with pytest.raises(ConfigError) as caught:
        distill(settings(world, *trackers), out, progress=SilentProgress())
    assert not out.exists()
    return str(caught.value)


def test_a_tracker_whose_package_is_missing_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if "tensorboard" in name else found(name, *rest)
    )
    assert refused(world, tmp_path / "run", "tensorboard") == (
        "training.report_to has tensorboard, which cannot be had here (TensorBoardCallback requires tensorboard to be "
        "installed. Either update your PyTorch version or install tensorboardX.): install it (pip install "
        "'betakd-pipe[tracking]'), or leave it out"
    )


def test_an_unknown_tracker_is_refused(world: World, tmp_path: Path) -> None:
    message = refused(world, tmp_path / "run", "tensorbord")
    assert message.startswith("training.report_to has 'tensorbord': choose among azure_ml, ")
    assert "tensorboard" in message

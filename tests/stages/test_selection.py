"""Validation while a student trains: which step is kept, when it stops, and that a resumed run does the same."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.stages.test_training import Interrupt
from tests.stages.test_training_survival import Stop
from tests.world import World
from torch import nn

from betakd_stages.distillation import run as training
from betakd_stages.distillation.run import distill
from betakd_stages.distillation.selection import ACCURACY, Selection, best_row
from betakd_stages.errors import Interrupted
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings
from betakd_stages.settings.selection import SelectionSettings

TRAINING = {"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "log_every_steps": 5, "checkpoint_every_steps": 5}


def settings(world: World, **changes: Any) -> DistillSettings:
    return DistillSettings.model_validate(
        {
            "student": str(world.student),
            "cache": str(world.cache),
            "data": world.data,
            "validation": "digits:transfer?count=8&seed=5",
            "objective": {"energies": ["taid"]},
            "training": {**TRAINING, **changes},
        }
    )


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def digits_of_weights(student: Any, *_: Any) -> float:
    """An accuracy that jumps up and down as the student trains, and follows from its weights alone."""
    return float(student.model.get_output_embeddings().weight.detach().double().norm() * 1e7 % 100)


def test_the_best_student_is_saved_and_a_resumed_run_saves_the_same(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "validation_accuracy", digits_of_weights)
    asked = settings(world, evaluate_every_steps=2, keep_best=True)
    summary = distill(asked, tmp_path / "whole", progress=SilentProgress())
    measured = rows(tmp_path / "whole", "validation.jsonl")
    assert [row["step"] for row in measured] == [2, 4, 6, 8, 10, 12]
    best = max(measured, key=lambda row: row["validation_accuracy"])
    assert best["step"] < 12, "the last step would be saved anyway: change the seed of this test"
    assert summary.steps == 12
    assert summary.final_metrics["kept_step"] == best["step"]
    assert summary.final_metrics["validation_accuracy"] == best["validation_accuracy"]

    for after in (3, 9):  # without a checkpoint at that step
        with pytest.raises(KeyboardInterrupt):
            distill(asked, tmp_path / "cut", progress=Interrupt(after))
    with pytest.raises(Interrupted):
        distill(asked, tmp_path / "cut", progress=Stop(11, signal.SIGTERM))
    distill(asked, tmp_path / "cut", progress=SilentProgress())
    for name in ("validation.jsonl", "metrics.jsonl", "result.json", "model/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_measuring_changes_nothing_in_the_training(world: World, tmp_path: Path) -> None:
    """With the real measurement, greedy answers."""
    distill(settings(world), tmp_path / "alone", progress=SilentProgress())
    distill(settings(world, evaluate_every_steps=5), tmp_path / "measured", progress=SilentProgress())
    for name in ("metrics.jsonl", "result.json", "model/model.safetensors"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "measured" / name).read_bytes(), name
    assert not (tmp_path / "alone" / "validation.jsonl").exists()
    measured = rows(tmp_path / "measured", "validation.jsonl")
    assert [row["step"] for row in measured] == [5, 10, 12]
    result = json.loads((tmp_path / "measured" / "result.json").read_text())
    assert measured[-1]["validation_accuracy"] == result["metrics"]["validation_accuracy"]


def test_a_student_that_does_not_become_better_stops_early_also_where_a_signal_comes_then(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "validation_accuracy", lambda *_: 50.0)
    asked = settings(world, evaluate_every_steps=2, patience=2)
    summary = distill(asked, tmp_path / "whole", progress=SilentProgress())
    assert summary.steps == 6  # the first is the best, then two that are not better
    assert [row["step"] for row in rows(tmp_path / "whole", "metrics.jsonl")] == [5, 6]
    with pytest.raises(Interrupted):
        distill(asked, tmp_path / "cut", progress=Stop(6, signal.SIGTERM))
    distill(asked, tmp_path / "cut", progress=SilentProgress())
    for name in ("validation.jsonl", "metrics.jsonl", "result.json", "model/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


class Pair(nn.Module):
    """What a selection sees of a distiller."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.objective = nn.Linear(1, 1), nn.Linear(1, 1)


def selection(folder: Path, distiller: Any, accuracies: list[float], resumed_step: int = 0) -> Selection:
    asked = SelectionSettings(evaluate_every_steps=1, keep_best=True, patience=2)
    measured = iter(accuracies)
    return Selection(asked, folder, resumed_step, distiller, lambda: {ACCURACY: next(measured)})


def test_of_equals_the_earlier_is_kept_with_its_weights_and_patience_counts_from_it(tmp_path: Path) -> None:
    pair = Pair()
    chosen = selection(tmp_path, pair, [10.0, 30.0, 30.0, 20.0])
    stops = []
    for step in range(1, 5):
        nn.init.constant_(pair.student.weight, step)
        nn.init.constant_(pair.objective.weight, 10 * step)
        stops.append(chosen.after_step(step, last=False))
    assert stops == [False, False, False, True]
    assert chosen.restore_best() == 2
    assert (pair.student.weight.item(), pair.objective.weight.item()) == (2.0, 20.0)
    assert best_row(rows(tmp_path, "validation.jsonl"))["step"] == 2


def test_the_best_step_of_the_last_checkpoint_stays_until_there_is_a_newer_checkpoint(tmp_path: Path) -> None:
    """A run resumed from it may find, on a GPU, that a later step is not better after all."""
    pair = Pair()
    chosen = selection(tmp_path, pair, [1.0, 2.0, 3.0, 4.0])
    chosen.after_step(1, last=False)
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-1" / "complete").touch()
    chosen.after_step(2, last=False)
    chosen.after_step(3, last=False)
    assert sorted(path.name for path in tmp_path.glob("checkpoints/best-*")) == ["best-1", "best-3"]
    again = selection(tmp_path, pair, [0.5, 0.5], resumed_step=1)
    again.after_step(2, last=False)
    assert again.restore_best() == 1
    assert [row["step"] for row in rows(tmp_path, "validation.jsonl")] == [1, 2]


def test_settings_that_lack_what_they_need_are_errors(world: World) -> None:
    with pytest.raises(ValidationError, match="keep_best or patience is given, but nothing measures the student"):
        settings(world, keep_best=True)
    complete = settings(world, evaluate_every_steps=2).model_dump()
    with pytest.raises(ValidationError, match="evaluate_every_steps is given but no data to measure on: name it"):
        DistillSettings.model_validate({**complete, "validation": None})

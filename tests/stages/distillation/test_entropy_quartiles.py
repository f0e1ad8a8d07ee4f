"""Figures by quartile of the teacher's entropy, and what timings.jsonl says of speed, against NumPy."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.stages.test_training import TRAINING
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.distillation.cached_targets import decode_batch
from betakd_stages.distillation.entropy_quartiles import by_quartile, entropy_borders
from betakd_stages.distillation.run import distill
from betakd_stages.distillation.training_log import TrainingLog, batch_sizes, summarise, throughput
from betakd_stages.encoding import packed
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings


def figures(entropy: list[float], betas: list[float], energies: list[float], present: list[bool]) -> dict[str, Any]:
    size = len(entropy)
    return {
        "objective": torch.tensor(1.0),
        "count": torch.tensor(float(size)),
        "cross_entropy": torch.arange(size).float() / 8,
        "cross_entropy_weights": torch.ones(size),
        "energies": torch.tensor(energies)[:, None],
        "betas": torch.tensor(betas)[:, None],
        "present": torch.tensor(present)[:, None],
        "teacher_entropy": torch.tensor(entropy),
        "student_entropy": torch.ones(size),
    }


def test_a_row_has_means_per_quartile_over_all_batches_of_the_samples_that_have_the_channel() -> None:
    borders = (0.5, 1.0, 2.0)
    first = figures([0.1, 0.5, 0.9, 3.0], [1.0, 2.0, 4.0, 8.0], [0.5, 0.25, 1.0, 2.0], [True, True, True, False])
    second = figures([0.2, 5.0], [16.0, 32.0], [4.0, 8.0], [True, True])
    row = summarise([first, second], ["fkl"], borders)
    assert [row[f"cross_entropy/quartile{n}"] for n in (1, 2, 3, 4)] == [
        np.mean([0, 0]),
        np.mean([0.125, 0.25]),
        None,
        np.mean([0.375, 0.125]),
    ]
    assert [row[f"energy/fkl/quartile{n}"] for n in (1, 2, 3, 4)] == [2.25, 0.625, None, 8.0]
    assert [row[f"beta/fkl/quartile{n}"] for n in (1, 2, 3, 4)] == [8.5, 3.0, None, 32.0]


def test_without_borders_there_are_no_quartiles() -> None:
    row = summarise([figures([0.1, 0.5], [1.0, 2.0], [0.5, 0.25], [True, True])], ["fkl"])
    assert not [name for name in row if "quartile" in name]
    assert by_quartile("x", torch.ones(2), torch.ones(2), ()) == {}


def test_borders_are_the_quartiles_of_the_runs_own_samples_in_the_cache(world: World) -> None:
    cache = open_cache(world.cache)
    indices = np.array([40, 3, 17, 8, 22, 31, 5])
    entropies = []
    for index in indices.tolist():
        targets = decode_batch(cache.batch([index]), cache.manifest, torch.device("cpu")).targets
        entropies.append(float(targets.entropy().double().mean()))
    inner = np.sort(entropies)  # of seven, in the middle behind the second, the fourth and the sixth
    expected = [(inner[place - 1] + inner[place]) / 2 for place in (2, 4, 6)]
    assert entropy_borders(cache, indices) == pytest.approx(expected, abs=1e-3)


class Rows:
    """What is asked of a cache."""

    def __init__(self, entropy: list[float]) -> None:
        self._entropy = entropy

    def rows(self, columns: list[str]) -> pa.Table:
        return pa.table({"entropy": self._entropy})


@pytest.mark.parametrize(
    ("entropy", "expected"),
    [
        ([0.0, 1.0, 2.0, 3.0], (0.5, 1.5, 2.5)),
        ([1.0, 1.00005, 1.0, 1.00005, 2.0, 4.0], (1.500025, 1.500025, 3.0)),  # alike, but for rounding
        ([1.0, 1.0, 1.0], (math.inf, math.inf, math.inf)),
        ([1.0], (math.inf, math.inf, math.inf)),
    ],
)
def test_borders_lie_between_samples_and_never_part_those_that_are_alike(
    entropy: list[float], expected: tuple[float, ...]
) -> None:
    borders = entropy_borders(Rows(entropy), np.arange(len(entropy)))  # type: ignore[arg-type]
    assert borders == pytest.approx(expected, abs=1e-4)


def test_each_quarter_of_the_samples_of_an_epoch_is_in_its_own_quartile(world: World, tmp_path: Path) -> None:
    """One row over all 48 samples: the borders come from the cache and the entropies from the training."""
    asked = {
        "student": str(world.student),
        "cache": str(world.cache),
        "data": world.data,
        "objective": {"energies": ["fkl"]},
        "training": {**TRAINING, "steps": 6, "log_every_steps": 6, "learning_rate": 1e-9},
    }
    distill(DistillSettings.model_validate(asked), tmp_path / "run", progress=SilentProgress())
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("cross_entropy", "energy/fkl", "beta/fkl"):
        assert np.mean([row[f"{name}/quartile{n}"] for n in (1, 2, 3, 4)]) == pytest.approx(row[name], rel=1e-9)


def test_lengths_count_visual_tokens_and_leave_out_padding_packed_or_not() -> None:
    batch = {
        "input_ids": torch.tensor([[9, 9, 5, 6], [8, 7, 8, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100]]),
        "has_image": torch.tensor([True, False]),
    }
    for sizes in (batch_sizes(batch), batch_sizes(packed(batch))):
        assert sizes["tokens"].tolist() == [4, 3]
        assert sizes["supervised_tokens"].tolist() == [2, 1]


def test_speed_is_that_of_the_steps_covered() -> None:
    batches = [{"tokens": torch.tensor([10, 30]), "supervised_tokens": torch.tensor([1, 2])}] * 4
    assert throughput(batches, num_steps=2, seconds_per_step=0.5) == {
        "samples_per_second": 8.0,
        "tokens_per_second": 160.0,
        "supervised_tokens_per_second": 12.0,
    }


def test_a_row_after_a_resume_counts_batches_since_the_row_before_and_seconds_since_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from betakd_stages.distillation import training_log

    clock = iter([100.0, 110.0, 110.0, 200.0, 204.0, 204.0])
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: next(clock))
    step = {"tokens": torch.tensor([10, 30]), "supervised_tokens": torch.tensor([1, 2])}
    timing = TrainingLog(tmp_path, 0).write(5, {}, [step] * 5)
    assert (timing["seconds_per_step"], timing["tokens_per_second"]) == (2.0, 20.0)
    timing = TrainingLog(tmp_path, 8).write(10, {}, [step] * 5)  # steps 6 to 8 are those of a checkpoint
    assert (timing["seconds_per_step"], timing["tokens_per_second"]) == (2.0, 20.0)
    assert timing["memory_mib"] > 50


def test_the_peak_on_a_gpu_is_that_of_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the counter, where there is no GPU: it is read, then set back."""
    peaks = [300 * 2**20]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peaks[-1])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peaks.append(200 * 2**20))
    log = TrainingLog(tmp_path, 0)
    step = {"tokens": torch.tensor([1]), "supervised_tokens": torch.tensor([1])}
    assert [log.write(number, {}, [step])["peak_gpu_memory_mib"] for number in (1, 2)] == [300, 200]

"""The rows of metrics.jsonl: what is averaged over what, and the sign of a collapse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.world import World

from betakd_stages.distillation.run import distill
from betakd_stages.distillation.training_log import METRICS, collapsing, correlation, read_rows, summarise
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings


def batch(
    betas: list[float], energies: list[float], entropy: list[float], present: list[bool]
) -> dict[str, torch.Tensor]:
    size = len(betas)
    return {
        "objective": torch.tensor(float(size)),
        "count": torch.tensor(float(size)),
        "cross_entropy": torch.arange(size).float(),
        "cross_entropy_weights": torch.tensor(betas) / 10,
        "energies": torch.tensor(energies)[:, None],
        "betas": torch.tensor(betas)[:, None],
        "present": torch.tensor(present)[:, None],
        "teacher_entropy": torch.tensor(entropy),
        "student_entropy": 2 * torch.tensor(entropy),
    }


def test_absent_samples_do_not_count_and_correlations_are_within_batches() -> None:
    first = batch([1.0, 2.0, 4.0, 9.0], [0.1, 0.2, 0.3, 5.0], [0.5, 0.4, 0.1, 7.0], [True, True, True, False])
    second = batch([100.0, 100.0], [0.5, 0.5], [0.1, 0.2], [True, True])
    row = summarise([first, second], ["fkl"])
    assert row["energy/fkl"] == pytest.approx(np.mean([0.1, 0.2, 0.3, 0.5, 0.5]))
    assert row["beta/fkl"] == pytest.approx(np.mean([1, 2, 4, 100, 100]))
    assert row["weighted/fkl"] == pytest.approx(np.mean([0.1, 0.4, 1.2, 50, 50]))
    assert row["beta/fkl/q50"] == pytest.approx(4.0)
    assert row["teacher_entropy"] == pytest.approx(np.mean([0.5, 0.4, 0.1, 7.0, 0.1, 0.2]))
    assert row["student_entropy"] == pytest.approx(2 * np.mean([0.5, 0.4, 0.1, 7.0, 0.1, 0.2]))
    # The second batch has one weight for all, so no correlation; the first alone gives it.
    expected = np.corrcoef(np.log([1, 2, 4]), [0.5, 0.4, 0.1])[0, 1]
    assert row["entropy_correlation/fkl"] == pytest.approx(expected, abs=1e-6)


def test_the_weights_of_the_labels_are_logged_with_their_spread() -> None:
    first = batch([1.0, 2.0, 4.0], [0.1] * 3, [0.5] * 3, [True] * 3)
    row = summarise([first, batch([9.0, 9.0], [0.1] * 2, [0.5] * 2, [True] * 2)], ["fkl"])
    weights = np.array([1, 2, 4, 9, 9]) / 10
    assert row["cross_entropy_weight"] == pytest.approx(weights.mean())
    for share in (10, 50, 90):
        assert row[f"cross_entropy_weight/q{share}"] == pytest.approx(np.percentile(weights, share))


def test_a_constant_or_a_single_number_correlates_with_nothing() -> None:
    assert correlation(torch.tensor([1.0]), torch.tensor([2.0])) is None
    assert correlation(torch.ones(4), torch.arange(4.0)) is None
    assert correlation(torch.arange(4.0), 2 * torch.arange(4.0)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("beta", "slope", "expected"),
    [(3.0, 0.5, ["fkl"]), (1.5, 0.5, []), (3.0, -0.5, []), (3.0, None, [])],
)
def test_a_collapse_is_a_weight_that_doubles_where_the_teacher_knows_least(
    beta: float, slope: float | None, expected: list[str]
) -> None:
    assert collapsing({"beta/fkl": 1.0}, {"beta/fkl": beta, "entropy_correlation/fkl": slope}, ["fkl"]) == expected


def test_a_run_with_weights_of_single_labels_logs_how_far_they_spread(world: World, tmp_path: Path) -> None:
    settings = {
        "student": str(world.student),
        "cache": str(world.cache),
        "data": world.data,
        "weighting": {
            "name": "instance",
            "inputs": ["gold_probability"],
            "learning_rate": 0.05,
            "options": {"learn_cross_entropy": True},
        },
        "training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "log_every_steps": 1, "num_threads": 1},
    }
    distill(DistillSettings.model_validate(settings), tmp_path / "run", progress=SilentProgress())
    first, *_, last = read_rows(tmp_path / "run" / METRICS)
    # The network's last layer starts at zero: all labels weigh the same before the first step.
    assert first["cross_entropy_weight/q10"] == first["cross_entropy_weight/q90"] == pytest.approx(1.0)
    assert last["cross_entropy_weight/q10"] < last["cross_entropy_weight"] < last["cross_entropy_weight/q90"]
    assert 0 < last["student_entropy"] < 10

"""The probe against both models' own logits in float64, and that it leaves the training as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.stages.distillation.test_held_out import log_probabilities
from tests.stages.test_training import INSTANCE, TRAINING, Interrupt, assert_same_run, settings
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.data import load_samples
from betakd_stages.distillation.probe import compared, moments, probe_places
from betakd_stages.distillation.run import distill
from betakd_stages.encoding import IGNORED
from betakd_stages.models.loading import load_model
from betakd_stages.progress import Progress, SilentProgress

DROPOUT = {"adapter": {"kind": "lora", "rank": 4, "dropout": 0.3}}
CHANGES: dict[str, dict[str, Any]] = {
    "instance": INSTANCE,
    "manual, measured before the first step": {
        "objective": {"energies": ["fkl", "taid"]},
        "weighting": {"name": "manual", "options": {"num_batches": 3}},
        **DROPOUT,
    },
    "ctkd, gradnorm": {"objective": {"energies": ["ctkd"]}, "weighting": {"name": "gradnorm"}},
}


def run(
    world: World,
    out: Path,
    num_samples: int = 20,
    *,
    steps: int = 6,
    checkpoint_every_steps: int = 4,
    progress: Progress | None = None,
    **changes: Any,
) -> Path:
    own = {"steps": steps, "probe_samples": num_samples, "checkpoint_every_steps": checkpoint_every_steps}
    distill(settings(world, training={**TRAINING, **own}, **changes), out, progress=progress or SilentProgress())
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "probe.jsonl").read_text().splitlines()]


def wasserstein_distance(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """The area between the two cumulative distributions."""
    places = np.sort(np.concatenate([left, right]))
    shares = [np.searchsorted(np.sort(values), places[:-1], side="right") / len(values) for values in (left, right)]
    return float((np.abs(shares[0] - shares[1]) * np.diff(places)).sum())


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_probed_run_is_the_run_without_probe(world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
    probed, plain = (run(world, tmp_path / str(number), number, **changes) for number in (20, 0))
    assert_same_run(probed, plain)
    assert [row["step"] for row in rows_of(probed)] == [0, 1, 2, 4, 6]
    assert not (plain / "probe.jsonl").exists()


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return run(world, tmp_path_factory.mktemp("whole") / "run", checkpoint_every_steps=2)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resumed_run_has_the_probe_of_the_uninterrupted_one(
    world: World, whole: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "cut", progress=Interrupt(step), checkpoint_every_steps=2)
    run(world, tmp_path / "cut", checkpoint_every_steps=2)
    assert (tmp_path / "cut" / "probe.jsonl").read_bytes() == (whole / "probe.jsonl").read_bytes()


@pytest.fixture(scope="module")
def first_row(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an instance-weighted run of one step, before that step: the student is still the one it started from."""
    out = tmp_path_factory.mktemp("probed") / "run"
    return rows_of(run(world, out, steps=1))[0]


def probed_distributions(world: World, folder: Path, row: dict[str, Any]) -> list[NDArray[np.float64]]:
    """Log-probabilities `[T, V]` of each probed sample by the model in a folder."""
    places = {sample.sample_id: place for place, sample in enumerate(load_samples(world.data))}
    of_all = log_probabilities(load_model(folder), world.data)
    return [of_all[places[sample_id]] for sample_id in row["samples"]["sample_id"]]


def test_cross_entropy_and_entropies_are_those_of_the_models_own_logits(
    world: World, first_row: dict[str, Any]
) -> None:
    found = first_row["samples"]
    student, teacher = (probed_distributions(world, each, first_row) for each in (world.student, world.teacher))
    encoder = load_model(world.student).encoder
    encoded = {sample.sample_id: encoder.encode(sample) for sample in load_samples(world.data)}
    for place, sample_id in enumerate(found["sample_id"]):
        labels = encoded[sample_id].labels
        gold = labels[labels != IGNORED].numpy()
        own, theirs = student[place], teacher[place]
        cross_entropy = -own[np.arange(len(gold)), gold].mean()
        assert found["cross_entropy"][place] == pytest.approx(cross_entropy, rel=1e-4)
        for name, values in (("student_entropy", own), ("teacher_entropy", theirs)):
            assert found[name][place] == pytest.approx(-(np.exp(values) * values).sum(axis=1).mean(), rel=2e-3), name
        divergence = (np.exp(theirs) * (theirs - own)).sum(axis=1).mean()
        assert found["energy/fkl"][place] == pytest.approx(divergence, rel=5e-3)
    assert set(found["beta/fkl"]) == {1.0}, "every sample starts with the initial beta"
    assert set(found) >= {"energy/feature:vision", "beta/feature:prompt", "beta/cosine_probs"}


def test_log_probabilities_are_compared_on_the_entries_that_the_cache_kept(
    world: World, first_row: dict[str, Any]
) -> None:
    student, teacher = (probed_distributions(world, each, first_row) for each in (world.student, world.teacher))
    cache = open_cache(world.cache)
    decoded = cache.batch(cache.index_of(first_row["samples"]["sample_id"])).decode()
    kept = np.isfinite(decoded.gaps)
    own, theirs = (
        np.take_along_axis(np.concatenate(values), decoded.ids, axis=1)[kept] for values in (student, teacher)
    )
    found = first_row["log_probabilities"]
    assert found["num_entries"] == kept.sum()
    assert found["student_mean"] == pytest.approx(own.mean(), rel=1e-4)
    assert found["teacher_mean"] == pytest.approx(theirs.mean(), rel=2e-3)
    assert found["wasserstein_1"] == pytest.approx(wasserstein_distance(own, theirs), rel=1e-2)
    expected = np.histogram(own, np.array(found["bin_edges"]))[0]
    assert np.abs(np.array(found["student_counts"]) - expected).sum() <= 2  # of those at an edge, within rounding
    assert sum(found["teacher_counts"]) == kept.sum()


def test_wasserstein_distance_and_histograms_are_of_all_entries_whatever_their_order() -> None:
    teacher, student = np.array([-0.1, -40.0, -3.0]), np.array([-2.0, -1.0, -0.2])
    found = compared(teacher, student)
    assert found["wasserstein_1"] == pytest.approx(wasserstein_distance(teacher, student), rel=1e-5)
    assert found == compared(teacher[::-1], student)
    assert found["teacher_counts"][0] == 1, "what is below the first edge counts into the first bin"
    assert compared(teacher, teacher)["wasserstein_1"] == 0


def test_samples_are_the_same_ones_in_every_row_and_every_run(world: World, tmp_path: Path) -> None:
    first, second = (run(world, tmp_path / str(seed), 7, seed=seed, steps=3) for seed in (0, 1))
    ids = [row["samples"]["sample_id"] for folder in (first, second) for row in rows_of(folder)]
    assert len(ids) == 8
    assert all(each == ids[0] for each in ids)
    assert len(set(ids[0])) == 7
    weights = [row["samples"]["beta/fkl"] for row in rows_of(first)]
    assert weights[0] != weights[-1]


def test_a_run_on_labels_alone_has_no_teacher_to_compare_with(world: World, tmp_path: Path) -> None:
    labels: dict[str, Any] = {"cache": None, "objective": {"energies": []}, "weighting": {"name": "fixed"}}
    row = rows_of(run(world, tmp_path / "run", **labels))[-1]
    assert "log_probabilities" not in row
    assert row["samples"].keys() == {"sample_id", "cross_entropy", "teacher_entropy", "student_entropy"}


def test_moments_of_short_runs_come_once_and_places_are_no_more_than_there_are() -> None:
    assert moments(280) == [0, 28, 84, 168, 280]
    assert moments(1) == [0, 1]
    assert moments(3) == [0, 1, 2, 3]
    assert probe_places(3, 64) == [0, 1, 2]
    assert len(set(probe_places(1000, 64))) == 64
    assert probe_places(1000, 0) == []

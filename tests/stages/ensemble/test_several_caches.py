"""Stage two from several caches: what two teachers add, and that one given twice adds nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tests.stages.ensemble.several import TRAINING, Caches, settings
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.data import load_samples
from betakd_stages.distillation.cached_targets import decode_batch
from betakd_stages.distillation.run import distill
from betakd_stages.ensemble.matching import match_caches
from betakd_stages.ensemble.records import TeacherEnsemble
from betakd_stages.inspection.run import inspect_samples
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings, EnsembleSettings, TrustSettings
from betakd_stages.trust.run import fit_trust

CPU = torch.device("cpu")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def trained(asked: DistillSettings, out: Path) -> list[dict[str, Any]]:
    distill(asked, out, progress=SilentProgress())
    return rows(out)


def ensemble_of(world: World, *paths: Path, **asked: Any) -> TeacherEnsemble:
    opened = tuple(open_cache(path) for path in paths)
    _, indices = match_caches(opened, load_samples(world.data), load_encoder(str(world.student)), "stop")
    return TeacherEnsemble(opened, indices, EnsembleSettings(**asked))


@pytest.mark.parametrize("combine", ["mixture", "prior"])
def test_a_teacher_given_twice_teaches_what_it_teaches_alone(
    world: World, caches: Caches, tmp_path: Path, combine: str
) -> None:
    changes: dict[str, Any] = {"objective": {"energies": ["fkl", "rkl"]}}
    alone = trained(settings(world, caches.first, **changes), tmp_path / "alone")
    twice = trained(
        settings(world, caches.first, caches.copy, ensemble={"combine": combine}, **changes), tmp_path / "twice"
    )
    for one, other in zip(alone, twice, strict=True):
        assert other["objective"] == pytest.approx(one["objective"], abs=2e-3)
        assert other["cross_entropy"] == pytest.approx(one["cross_entropy"], abs=2e-3)


def test_every_channel_of_a_teacher_is_what_it_would_be_alone(world: World, caches: Caches, tmp_path: Path) -> None:
    first, other = (trained(settings(world, path), tmp_path / path.name)[0] for path in (caches.first, caches.other))
    both = trained(settings(world, caches.first, caches.other, ensemble={"combine": "channels"}), tmp_path / "both")[0]
    for alone, number in ((first, 1), (other, 2)):
        assert both[f"energy/fkl@{number}"] == pytest.approx(alone["energy/fkl"], abs=1e-5)
        assert both[f"beta/fkl@{number}"] == pytest.approx(alone["beta/fkl"], abs=1e-5)
    assert both["energy/feature:prompt@1"] == pytest.approx(first["energy/feature:prompt"], rel=0.2)


def test_the_others_carry_a_sample_that_one_cache_lacks(world: World, caches: Caches) -> None:
    ensemble = ensemble_of(world, caches.first, caches.fewer)
    assert (ensemble.num_missing, ensemble.num_carried) == ((0, 18), 18)
    places = np.arange(len(ensemble.indices))

    mixed = ensemble.decode(ensemble.batch(places), CPU)

    alone = decode_batch(ensemble.caches[0].batch(ensemble.indices[:, 0]), ensemble.caches[0].manifest, CPU).targets
    missing = ensemble.indices[:, 1] < 0
    assert not mixed.present["prompt@2"][missing].any()
    assert mixed.present["prompt@1"].all()
    tokens = torch.from_numpy(missing)[alone.sample_index]
    assert torch.equal(mixed.targets.gold_ids, alone.gold_ids)
    torch.testing.assert_close(
        mixed.targets.gold_log_probability()[tokens], alone.gold_log_probability()[tokens], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(mixed.targets.entropy()[tokens], alone.entropy()[tokens], atol=1e-5, rtol=0)
    assert not torch.isclose(mixed.targets.entropy()[~tokens], alone.entropy()[~tokens], atol=1e-3).any()


def test_a_batch_that_one_cache_lacks_altogether_is_carried_too(world: World, caches: Caches, tmp_path: Path) -> None:
    ensemble = ensemble_of(world, caches.fewer, caches.first, combine="prior")
    missing = np.flatnonzero(ensemble.indices[:, 0] < 0)[:3]

    cached = ensemble.decode(ensemble.batch(missing), CPU)

    assert cached.experts is not None
    assert cached.experts.weights.tolist() == [[0.0, 1.0]] * 3
    assert cached.targets.num_samples == 3
    run = trained(settings(world, caches.fewer, caches.first, ensemble={"combine": "prior"}), tmp_path / "run")
    assert np.isfinite([row["objective"] for row in run]).all()


def test_batches_of_one_give_the_targets_of_one_batch(world: World, caches: Caches) -> None:
    ensemble = ensemble_of(world, caches.first, caches.fewer, weighting="entropy")
    places = np.arange(12)
    together = ensemble.decode(ensemble.batch(places), CPU).targets

    one_by_one = [ensemble.decode(ensemble.batch([place]), CPU).targets for place in places]

    for name in ("gold_log_probability", "entropy", "margin", "tail_log_probability"):
        found = torch.cat([getattr(each, name)(1.0) for each in one_by_one])
        torch.testing.assert_close(found, getattr(together, name)(1.0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["learned", "trust"])
def test_fitted_weights_are_kept_with_the_run_and_resuming_uses_them(
    world: World, caches: Caches, tmp_path: Path, rule: str
) -> None:
    if rule == "trust":
        for path in (caches.first, caches.other):
            fit_trust(TrustSettings(cache=str(path), data=world.data), progress=SilentProgress())
    asked = settings(world, caches.first, caches.other, ensemble={"weighting": rule})
    distill(asked, tmp_path / "run", progress=SilentProgress())

    table = pq.read_table(tmp_path / "run" / "teacher_weights.parquet")

    assert table.column_names == ["sample_id", "teacher1", "teacher2"]
    assert table["sample_id"].to_pylist() == [sample.sample_id for sample in load_samples(world.data)]
    sums = table["teacher1"].to_numpy() + table["teacher2"].to_numpy()
    if rule == "learned":
        np.testing.assert_allclose(sums, 1.0, atol=1e-6)
    view = inspect_samples(tmp_path / "run", asked, sample_ids=[table["sample_id"][5].as_py()])[0]
    assert [channel.name for channel in view.channels] == [
        "cross_entropy", "fkl", "feature:prompt@1", "feature:prompt@2",
    ]  # fmt: skip


class Interrupt(SilentProgress):
    """Ctrl-C in the second step."""

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        if "objective" in shown or num_units == 1:
            raise KeyboardInterrupt


def test_resumed_equals_uninterrupted(world: World, caches: Caches, tmp_path: Path) -> None:
    training = {**TRAINING, "checkpoint_every_steps": 2}
    asked = settings(
        world, caches.first, caches.fewer, ensemble={"combine": "prior", "weighting": "entropy"}, training=training
    )
    distill(asked, tmp_path / "whole", progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        distill(asked, tmp_path / "resumed", progress=Interrupt())
    distill(asked, tmp_path / "resumed", progress=SilentProgress())

    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "resumed" / "metrics.jsonl").read_bytes()
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_robust_weighting_takes_the_mixture_of_trusts(world: World, caches: Caches) -> None:
    ensemble = ensemble_of(world, caches.first, caches.fewer)
    trust = np.zeros(ensemble.indices.shape, np.float32)
    trust[:, 0], trust[:, 1] = 0.8, np.where(ensemble.indices[:, 1] >= 0, 0.2, 0.0)
    ensemble = TeacherEnsemble(ensemble.caches, ensemble.indices, ensemble.settings, trust=trust)

    found = ensemble.decode(ensemble.batch(np.arange(48)), CPU).targets.trust

    expected = np.where(ensemble.indices[:, 1] >= 0, 0.5, 0.8)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_sample_that_one_cache_lacks_is_inspected_by_what_the_other_says(
    world: World, caches: Caches, tmp_path: Path
) -> None:
    asked = settings(
        world, caches.fewer, caches.first, ensemble={"combine": "channels"}, objective={"energies": ["rkl"]}
    )
    distill(asked, tmp_path / "run", progress=SilentProgress())
    ensemble = ensemble_of(world, caches.fewer, caches.first)
    missing = int(np.flatnonzero(ensemble.indices[:, 0] < 0)[0])
    sample_id = load_samples(world.data)[missing].sample_id

    view = inspect_samples(tmp_path / "run", asked, sample_ids=[sample_id])[0]

    assert [(channel.name, channel.value is None) for channel in view.channels] == [
        ("cross_entropy", False), ("rkl@1", True), ("rkl@2", False),
    ]  # fmt: skip
    assert all(token.energies.keys() == {"rkl@2"} for token in view.tokens)


def test_energies_on_logits_take_a_sample_that_one_cache_lacks(world: World, caches: Caches, tmp_path: Path) -> None:
    changes = {"ensemble": {"combine": "prior"}, "objective": {"energies": ["mse_logits"]}}
    run = trained(settings(world, caches.first, caches.fewer, **changes), tmp_path / "run")
    assert np.isfinite([row["objective"] for row in run]).all()


def test_instance_weights_may_see_the_trust_of_several_caches(world: World, caches: Caches, tmp_path: Path) -> None:
    for name, path in (("first", caches.first), ("other", caches.other)):
        shutil.copytree(path, tmp_path / name)
        fit_trust(TrustSettings(cache=str(tmp_path / name), data=world.data), progress=SilentProgress())
    weighting = {"name": "instance", "inputs": ["trust"]}
    asked = settings(world, tmp_path / "first", tmp_path / "other", weighting=weighting)
    assert len(trained(asked, tmp_path / "run")) == 4

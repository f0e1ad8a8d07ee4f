"""Stage two from several caches: what two teachers add, and that one given twice adds nothing."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.distillation.cached_targets import decode_batch
from betakd_stages.distillation.run import distill
from betakd_stages.ensemble.matching import match_caches
from betakd_stages.ensemble.records import TeacherEnsemble
from betakd_stages.errors import MismatchError
from betakd_stages.inspection.run import inspect_samples
from betakd_stages.models.loading import load_encoder
from betakd_stages.models.tiny import TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings, EnsembleSettings, TrustSettings
from betakd_stages.trust.run import fit_trust

FEWER = "digits:transfer?count=30&seed=3&label_noise=0.2"
"""The first 30 of the world's 48 samples."""
TRAINING = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "log_every_steps": 1, "probe_samples": 0}
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Caches:
    """The world's cache, a copy of it, and another teacher's of all and of fewer samples."""

    first: Path
    copy: Path
    other: Path
    fewer: Path


@pytest.fixture(scope="module")
def caches(world: World, tmp_path_factory: pytest.TempPathFactory) -> Caches:
    folder = tmp_path_factory.mktemp("several")
    shutil.copytree(world.cache, folder / "copy")
    teacher = save_tiny_model(folder / "teacher", TEACHER_SIZE, seed=7)
    for name, data in (("other", world.data), ("fewer", FEWER)):
        rules = CacheTeacherSettings(teacher=str(teacher), data=data, top_k=9, top_p=0.9, temperatures=(1.0, 2.0))
        cache_teacher(rules, folder / name, progress=SilentProgress())
    return Caches(world.cache, folder / "copy", folder / "other", folder / "fewer")


def settings(world: World, *cache: Path, **changes: Any) -> DistillSettings:
    common = {"student": str(world.student), "data": world.data, "training": TRAINING}
    energies = {"objective": {"energies": ["fkl"], "features": ["prompt"]}}
    return DistillSettings.model_validate({**common, **energies, "cache": [str(path) for path in cache], **changes})


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
    assert ensemble.num_missing == (0, 18)
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


def test_a_sample_that_no_cache_holds_is_one_line(world: World, caches: Caches) -> None:
    opened = [open_cache(caches.fewer), open_cache(caches.fewer)]
    encoder = load_encoder(str(world.student))
    with pytest.raises(MismatchError, match=r"is in none of 2 caches \(18 of 48 samples are not\)"):
        match_caches(opened, load_samples(world.data), encoder, "stop")

    matched, indices = match_caches(opened, load_samples(world.data), encoder, "drop")

    assert (matched.num_dropped, indices.shape) == (18, (30, 2))


def test_a_cache_of_other_data_is_named(world: World, caches: Caches, tmp_path: Path) -> None:
    noisy = "digits:transfer?count=48&seed=3&label_noise=0.9"
    teacher = tmp_path / "teacher"
    save_tiny_model(teacher, TEACHER_SIZE, seed=7)
    cache_teacher(CacheTeacherSettings(teacher=str(teacher), data=noisy), tmp_path / "noisy", progress=SilentProgress())
    opened = [open_cache(caches.first), open_cache(tmp_path / "noisy")]
    with pytest.raises(MismatchError, match=f"{tmp_path}/noisy was made from"):
        match_caches(opened, load_samples(world.data), load_encoder(str(world.student)), "stop")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": {"combine": "channels", "weighting": "entropy"}}, "each teacher has its own beta"),
        ({"ensemble": {"combine": "prior"}, "weighting": {"name": "robust"}}, "robust takes the teachers as one"),
        ({"ensemble": {"combine": "prior"}, "weighting": {"name": "pcgrad"}}, "pcgrad takes the teachers as one"),
        ({"targets": "generated"}, "teachers write different answers"),
        ({"trust": "t.parquet"}, "each of several caches has its own beside it"),
        ({"control": {"shuffle_records": True}}, "control.shuffle_records is for one cache"),
    ],
)
def test_settings_that_several_caches_do_not_allow_are_refused(
    world: World, caches: Caches, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(world, caches.first, caches.other, **changes)


def test_a_cache_named_twice_and_an_ensemble_of_one_are_refused(world: World, caches: Caches) -> None:
    with pytest.raises(ValueError, match="named twice"):
        settings(world, caches.first, caches.first)
    with pytest.raises(ValueError, match="name several, or leave it out"):
        settings(world, caches.first, ensemble={"combine": "prior"})

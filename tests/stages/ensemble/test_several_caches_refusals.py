"""Stage two from several caches: what does not belong together is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
from tests.stages.ensemble.several import Caches, settings
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.caching.vision import cache_vision
from betakd_stages.data import load_samples
from betakd_stages.distillation.run import distill
from betakd_stages.ensemble.matching import match_caches
from betakd_stages.ensemble.mixing import shared_temperatures
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.models.loading import load_encoder
from betakd_stages.models.tiny import TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, CacheVisionSettings


def test_a_sample_that_no_cache_holds_is_one_line(world: World, caches: Caches) -> None:
    opened = [open_cache(caches.fewer), open_cache(caches.fewer)]
    encoder = load_encoder(str(world.student))
    with pytest.raises(MismatchError, match=r"is in none of 2 caches \(18 of 48 samples are not\)"):
        match_caches(opened, load_samples(world.data), encoder, "stop")

    matched, indices = match_caches(opened, load_samples(world.data), encoder, "drop")

    assert (matched.num_dropped, indices.shape) == (18, (30, 2))


def test_a_cache_that_holds_none_of_the_samples_is_refused_by_a_run(
    world: World, caches: Caches, tmp_path: Path
) -> None:
    last = "digits:transfer?count=18&seed=99&types=sum"
    asked = settings(world, caches.first, caches.fewer, data=last, on_mismatch="drop")
    teacher = save_tiny_model(tmp_path / "teacher", TEACHER_SIZE, seed=7)
    cache_teacher(CacheTeacherSettings(teacher=str(teacher), data=last), tmp_path / "last", progress=SilentProgress())
    asked = asked.model_copy(update={"cache": (str(tmp_path / "last"), str(caches.fewer))})
    with pytest.raises(MismatchError, match=r"fewer holds no sample of 'digits:transfer"):
        distill(asked, tmp_path / "run", progress=SilentProgress())
    assert not (tmp_path / "run").exists()


def test_priors_are_mixed_by_the_same_channels_only(world: World, caches: Caches, tmp_path: Path) -> None:
    lean = tmp_path / "lean"
    teacher = save_tiny_model(tmp_path / "teacher", TEACHER_SIZE, seed=7)
    cache_teacher(
        CacheTeacherSettings(teacher=str(teacher), data=world.data, features=("vision",)),
        lean,
        progress=SilentProgress(),
    )
    asked = settings(world, caches.first, lean, ensemble={"combine": "prior"})
    with pytest.raises(ConfigError, match="teacher 2 has no feature:prompt"):
        distill(asked, tmp_path / "run", progress=SilentProgress())


def test_grids_that_do_not_reach_temperature_one_together_are_refused() -> None:
    assert shared_temperatures({"a": (0.5, 1.0, 2.0), "b": (2.0, 0.5)}) == (0.5, 2.0)
    with pytest.raises(MismatchError, match=r"do not reach \(a: 0.5, 2; b: 1\): cache the teachers with the same"):
        shared_temperatures({"a": (0.5, 2.0), "b": (1.0,)})
    with pytest.raises(MismatchError, match=r"do not reach"):
        shared_temperatures({"a": (1.0, 2.0, 4.0), "b": (0.5, 2.0, 4.0)})


def test_a_vision_cache_among_several_is_refused(world: World, caches: Caches, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    cache_vision(
        CacheVisionSettings(student=str(world.student), data=world.data), str(tower), progress=SilentProgress()
    )
    with pytest.raises(MismatchError, match="tower holds what a vision tower says about images"):
        distill(settings(world, caches.first, tower), tmp_path / "run", progress=SilentProgress())


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
        ({"ensemble": {"weighting": "trust", "per": "token"}}, "knows samples only"),
        ({"ensemble": {"weighting": "confidence", "entropy_scale": 0.5}}, "or use entropy"),
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

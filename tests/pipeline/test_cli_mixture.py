"""`betakd-pipe cache merge --mixture`: one cache of several teachers, from which a student learns as from any other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.world import World

from betakd_cache import derive, open_cache
from betakd_pipe.cli import main
from betakd_stages.caching.run import cache_teacher
from betakd_stages.models.tiny import TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings

QUICK = ["--set", "fit.num_folds=2", "--set", "fit.num_fits=1", "--set", "fit.smallest_group=5"]


@pytest.fixture(scope="module")
def second(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of another teacher, of other settings, that lacks the first four samples."""
    folder = tmp_path_factory.mktemp("second")
    teacher = save_tiny_model(folder / "teacher", TEACHER_SIZE, seed=5)
    settings = CacheTeacherSettings(
        teacher=str(teacher), data=world.data, top_k=9, temperatures=(1.0, 2.0), features=("prompt",)
    )
    cache_teacher(settings, folder / "whole", progress=SilentProgress())
    ids = open_cache(folder / "whole").sample_ids.to_pylist()
    derive(folder / "whole", folder / "cache", sample_ids=ids[4:])
    return folder / "cache"


def mix(world: World, second: Path, out: Path, *flags: str) -> list[str]:
    return ["cache", "merge", "--mixture", str(world.cache), str(second), "--out", str(out), *flags]


def test_a_student_learns_from_the_mixture_as_from_any_cache(
    world: World, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(mix(world, second, tmp_path / "mixed", "--json")) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["num_samples"], fields["num_carried"], fields["teacher_weighting"]) == (48, 4, "uniform")
    assert fields["mean_weights"] == pytest.approx([26 / 48, 22 / 48])
    assert main(["cache", "verify", str(tmp_path / "mixed")]) == 0
    assert main(["cache", "info", str(tmp_path / "mixed")]) == 0
    distill = ["distill", "--student", str(world.student), "--cache", str(tmp_path / "mixed"), "--data", world.data]
    distill += ["--out", str(tmp_path / "run"), "--energy", "fkl", "--feature", "prompt"]
    distill += ["--set", "training.steps=2", "--set", "training.batch_size=8"]
    assert main(distill) == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert all(np.isfinite(metrics[f"energy/{name}"]) for name in ("fkl", "feature:prompt_1", "feature:prompt_2"))


def test_learned_weights_are_fitted_to_the_labels(world: World, second: Path, tmp_path: Path) -> None:
    learned = ["--teacher-weighting", "learned", "--data", world.data, *QUICK]
    assert main(mix(world, second, tmp_path / "learned", *learned)) == 0
    rows = open_cache(tmp_path / "learned").rows(["weight_1", "weight_2"]).to_pydict()
    weights = np.column_stack([rows["weight_1"], rows["weight_2"]])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert weights[4:, 0].std() > 0
    np.testing.assert_array_equal(weights[:4], [[1, 0]] * 4)


def test_trust_has_to_be_fitted_before(
    world: World, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = shutil.copytree(world.cache, tmp_path / "first")  # beside which no trust file lies
    merge = ["cache", "merge", "--mixture", str(first), str(second), "--out", str(tmp_path / "mixed")]
    assert main([*merge, "--teacher-weighting", "trust"]) == 2
    assert f"`betakd-pipe cache trust {first} --data 'digits:transfer?" in capsys.readouterr().err
    assert not (tmp_path / "mixed").exists()


def test_flags_of_a_mixture_without_it_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge = ["cache", "merge", str(world.cache), str(world.cache), "--out", str(tmp_path / "out")]
    assert main([*merge, "--teacher-weighting", "entropy"]) == 2
    assert "are for several teachers: add --mixture" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "rule", "named"),
    [
        (["--data", "nonsense:1", "--set", "fit.seed=3"], "uniform", "data and fit"),
        (["--set", "fit.num_fits=2", "--teacher-weighting", "entropy"], "entropy", "fit"),
        (["--data", "digits:transfer", "--teacher-weighting", "trust"], "trust", "data"),
    ],
)
def test_what_only_learned_weights_take_is_refused_with_other_rules(
    flags: list[str], rule: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge = ["cache", "merge", "--mixture", "a", "b", "--out", str(tmp_path / "out"), *flags]
    assert main(merge) == 2
    assert (
        f"{named} given, which only learned weights are fitted with, but ensemble.weighting is {rule}: leave that "
        "out, or ask for them (--teacher-weighting learned)\n"
    ) in capsys.readouterr().err


def test_an_unknown_rule_is_refused_by_name(
    world: World, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(mix(world, second, tmp_path / "out", "--teacher-weighting", "loudest")) == 2
    assert "ensemble.weighting: found 'loudest', expected 'uniform', 'entropy'" in capsys.readouterr().err

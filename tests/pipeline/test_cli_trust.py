"""`betakd-pipe cache trust`: what it prints and writes, and `distill --weighting robust` behind it."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.world import World

from betakd_pipe.cli import main

QUICK = ["--set", "num_folds=2", "--set", "num_fits=1", "--set", "smallest_group=5"]


@pytest.fixture
def cache(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.cache, tmp_path / "cache"))


def test_it_prints_groups_a_histogram_and_the_samples_worth_a_look(
    world: World, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "trust", str(cache), "--data", world.data, "--clashes", "2", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["which:", "which"] for line in lines)
    assert any(line.startswith("trust in the teacher, samples (mean ") for line in lines)
    start = lines.index("labels that contradict the teacher most (nats below its own answer; trust in it)")
    assert [line.split()[0].startswith("digits-transfer-") for line in lines[start + 1 : start + 3]] == [True, True]
    assert lines[start + 3] == ""
    assert lines[-1] == f"48 samples: {cache}.trust.parquet"


def test_json_has_the_same_and_the_file_goes_where_it_is_asked_to(
    world: World, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere" / "trust.parquet"
    assert main(["cache", "trust", str(cache), "--data", world.data, "--out", str(out), "--json", *QUICK]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["path"] == str(out)
    assert fields["num_samples"] == pq.read_table(out).num_rows == 48
    assert {"group", "num_samples", "agreement", "pi", "skill", "skill_error", "trust", "is_trusted"} == fields[
        "groups"
    ][0].keys()
    assert len(fields["clashes"]) == 10
    assert not Path(f"{cache}.trust.parquet").exists()


def test_a_student_learns_by_it(world: World, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill = ["distill", "--student", str(world.student), "--cache", str(cache), "--data", world.data]
    distill += ["--out", str(tmp_path / "run"), "--weighting", "robust", "--set", "training.steps=2"]
    distill += ["--set", "training.batch_size=8", "--set", "training.learning_rate=1e-3"]
    assert main(distill) == 2
    assert f"`betakd-pipe cache trust {cache} --data '{world.data}'`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["cache", "trust", str(cache), "--data", world.data, *QUICK]) == 0
    assert main(distill) == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert 0 <= metrics["beta/fkl"] <= 10
    assert main(["inspect", str(tmp_path / "run")]) == 0


def test_data_of_another_cache_are_one_line(world: World, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "trust", str(cache), "--data", "digits:test?count=5"]) == 2
    assert "does not hold sample 'digits-test-" in capsys.readouterr().err


def test_the_data_have_to_be_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "trust", str(cache)]) == 2
    assert "data is missing; expected the data specification that the cache was made from" in capsys.readouterr().err

"""`--ray` without a cluster: one line, whatever is missing. None of it needs Ray."""

import importlib.util
import socket
from pathlib import Path

import pytest
from tests.world import World

from betakd_pipe.cli import main
from betakd_pipe.cluster import ray_pool
from betakd_pipe.config import load_settings
from betakd_stages.errors import ConfigError
from betakd_stages.settings import CacheTeacherSettings

DATA = "digits:transfer?count=8"


def refused(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> str:
    """The line that `cache-teacher --ray` ends with; nothing was written."""
    assert main(["cache-teacher", "--teacher", "teacher", "--data", DATA, "--out", str(out), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not out.exists()
    return line.removeprefix("betakd-pipe: ")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_without_ray_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = refused(capsys, tmp_path / "cache", "--ray", "auto")
    assert line == "--ray auto: Ray is not installed: pip install 'betakd-pipe[ray]'"


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", "everywhere"])
def test_what_is_no_address_is_refused(
    tmp_path: Path, installed: None, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    line = refused(capsys, tmp_path / "cache", "--ray", address)
    assert line == f"--ray {address}: expected auto, local, or HOST:PORT of the cluster's head, port 6379 as a rule"


def test_an_address_where_nobody_answers_is_named_at_once(
    tmp_path: Path, installed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = refused(capsys, tmp_path / "cache", "--ray", f"127.0.0.1:{port}")
    assert line == (
        f"--ray 127.0.0.1:{port}: nobody answers there ([Errno 111] Connection refused): check the address that "
        "`ray start --head` printed"
    )


def test_tasks_cannot_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cache"
    line = refused(capsys, out, "--ray", "auto", "--overwrite")
    assert line == f"--ray auto and --overwrite: several writers cannot overwrite {out}; remove it first"


def test_an_evaluation_that_no_cluster_can_do_leaves_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "scores"
    command = ["evaluate", str(world.student), "--out", str(out), "--ray", "auto", "--benchmark"]
    assert main([*command, "digits?count=4"]) == 2
    assert capsys.readouterr().err.endswith("--ray auto: Ray is not installed: pip install 'betakd-pipe[ray]'\n")
    assert main([*command, "mmbench=absent.tsv"]) == 2
    assert "data file absent.tsv cannot be read" in capsys.readouterr().err, "inputs are looked at before the cluster"
    assert not out.exists()


def test_a_finished_evaluation_needs_no_cluster_and_other_resources_are_no_other_evaluation(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(world.student), "--benchmark", "digits?count=4", "--out", str(tmp_path / "scores")]
    assert main([*command, "--set", "max_new_tokens=2"]) == 0
    scores = capsys.readouterr().out
    more = ["--set", "max_new_tokens=2", "--ray", "head:1", "--set", "ray.num_cpus=4"]
    assert main([*command, *more]) == 0
    assert capsys.readouterr().out == scores


def test_a_share_of_several_gpus_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ray.num_gpus: found 1.5, expected a whole number or a share below 1"):
        load_settings(CacheTeacherSettings, None, {"teacher": "t", "data": DATA}, ["ray.num_gpus=1.5"])


@pytest.mark.parametrize(("folder", "expected"), [("there", "there"), ("there/cache", "there"), ("a/b/c", ".")])
def test_the_folder_that_is_compared_is_the_nearest_one_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: str
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    found = ray_pool._existing(Path(folder))
    assert found is not None
    assert found.samefile(tmp_path / expected)

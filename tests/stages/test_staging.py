"""`distill` stages the shards of a cache in an object store where it is told to, within the limit it is given."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from tests.cache.object_store import serve
from tests.world import World

from betakd_cache import merge
from betakd_pipe.cli import main

URL = "s3://bucket/cache"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield from serve(monkeypatch)


def test_distill_stages_shards_in_the_folder_it_is_given_and_drops_what_exceeds_the_limit(
    world: World, system: s3fs.S3FileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge([world.cache], URL)
    shared = ["distill", "--cache", URL, "--student", str(world.student), "--data", world.data]
    quick = ["--set", "training.steps=1", "--set", "training.batch_size=2", "--set", "training.num_threads=1"]
    flags = ["--out", str(tmp_path / "run"), "--staging", str(tmp_path / "here"), "--staging-limit", "1e-9"]
    assert main([*shared, *quick, *flags]) == 0
    assert len(list((tmp_path / "here").glob("*/shard-*"))) == 1  # of six, arrays and rows: what was fetched last
    assert not list((tmp_path / "home").glob("**/shard-*"))
    assert main([*shared, "--out", str(tmp_path / "other"), "--staging-limit", "0"]) == 2
    assert "staging_limit_gb" in capsys.readouterr().err

"""Both stages and the command line on a cache in an object store."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from tests.cache.object_store import serve
from tests.world import World

from betakd_cache import open_cache, verify
from betakd_pipe.cli import main
from betakd_stages.distillation.run import distill
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

URL = "s3://bucket/cache"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "staged"))
    yield from serve(monkeypatch)


def test_a_cache_written_to_and_read_from_s3_distils_to_the_same_metrics_as_one_on_disk(
    world: World, system: s3fs.S3FileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cache-teacher", "--teacher", str(world.teacher), "--data", world.data, "--out", URL]
    assert main([*command, "--set", "shard_samples=20", "--set", "batch_size=7"]) == 0
    for arguments in (["info", URL], ["verify", URL]):
        assert main(["cache", *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"{URL}: 48 samples (48 new)" in shown
    assert f"{URL}: sound" in shown
    for name, cache in {"local": str(world.cache), "store": URL}.items():
        settings = DistillSettings.model_validate(
            {
                "student": str(world.student),
                "cache": cache,
                "data": world.data,
                "training": {"steps": 4, "batch_size": 8, "num_threads": 1, "log_every_steps": 1},
            }
        )
        (tmp_path / name).mkdir()
        distill(settings, tmp_path / name, progress=SilentProgress())
    local, store = (metrics(tmp_path / name) for name in ("local", "store"))
    assert len(local) >= 4
    assert local == store
    assert verify(URL).ok
    assert len(open_cache(URL)) == 48


def metrics(run: Path) -> list[dict[str, float]]:
    """The logged rows without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]

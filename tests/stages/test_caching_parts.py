"""Several processes of stage one fill one cache together."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.cache.records import assert_equal_records
from tests.world import World

from betakd_cache import CacheError, open_cache, verify
from betakd_pipe.cli import main
from betakd_stages.caching.run import cache_teacher
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings

COMMAND = Path(sys.executable).with_name("betakd-pipe")


def arguments(world: World, out: Path, *more: str) -> list[str]:
    """Of `cache-teacher`, one sample at a time: padding to others would change the last bits of the numbers."""
    batches = ["--set", "batch_size=1", "--set", "shard_samples=5"]
    return ["cache-teacher", "--teacher", str(world.teacher), "--data", world.data, "--out", str(out), *batches, *more]


def assert_equal_caches(left: Path, right: Path) -> None:
    """Nothing; fails unless both hold the same samples with the same values, bit for bit."""
    found, expected = open_cache(left), open_cache(right)
    ids = expected.sample_ids.to_pylist()
    assert sorted(found.sample_ids.to_pylist()) == sorted(ids)
    for index, place in enumerate(found.index_of(ids)):
        assert_equal_records(found.record(int(place)), expected.record(index))
    assert verify(left).ok, verify(left).problems


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of one process."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    settings = CacheTeacherSettings(teacher=str(world.teacher), data=world.data, batch_size=1)
    assert cache_teacher(settings, out, progress=SilentProgress()).is_complete
    return out


def test_two_processes_at_once_write_what_one_does_and_the_last_completes_the_cache(
    world: World, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    processes = [
        subprocess.Popen(
            [str(COMMAND), *arguments(world, out, "--part", f"{number}/2")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    last_lines = sorted(stdout.splitlines()[-1].partition(" is complete, ")[2] for stdout, _ in printed)
    assert last_lines == ["and so is the cache", "other parts of the cache are not"]
    assert_equal_caches(out, whole)


def test_a_part_with_a_narrower_limit_is_finished_by_a_call_without(
    world: World, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    assert main(arguments(world, out, "--part", "1/2", "--limit", "20")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{out}: part 1/2 is complete, other parts of the cache are not"
    )
    with pytest.raises(CacheError, match="is incomplete"):
        open_cache(out)
    assert main(arguments(world, out, "--part", "0/2")) == 0
    assert len(open_cache(out)) == 24 + 10
    assert main(arguments(world, out, "--part", "1/2")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: part 1/2 is complete, and so is the cache"
    assert_equal_caches(out, whole)


@pytest.mark.parametrize("part", ["2/2", "1", "a/b", "-1/2", "1/0"])
def test_a_part_that_is_none_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    assert main(arguments(world, tmp_path / "cache", f"--part={part}")) == 2
    assert capsys.readouterr().err == (
        f"betakd-pipe: --part {part}: expected I/N with I from 0 to N - 1, such as 0/2 and 1/2 for two processes\n"
    )
    assert not (tmp_path / "cache").exists()

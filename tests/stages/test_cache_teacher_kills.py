"""kill -9 of the real `betakd-pipe cache-teacher` at random moments: resuming gives an uninterrupted run's values."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cache.records import assert_equal_records
from tests.world import World

from betakd_cache import open_cache, verify
from betakd_pipe.cli import main

COMMAND = Path(sys.executable).with_name("betakd-pipe")
DATA = "digits:transfer?count=400"
AT_WORK_S = 120.0


def arguments(world: World, out: Path) -> list[str]:
    """One sample at a time, so that values do not depend on where a run was cut, in many small shards."""
    return [
        *("cache-teacher", "--teacher", str(world.teacher), "--data", DATA, "--out", str(out)),
        *("--set", "batch_size=1", "--set", "shard_samples=4"),
    ]


def committed(path: Path) -> list[str]:
    """The ids that the cache holds at this moment; none if it has not come to be."""
    if not (path / "manifest.json").exists():
        return []
    return open_cache(path, allow_incomplete=True).sample_ids.to_pylist()


def kill_at_work(world: World, out: Path, delay_s: float) -> bool:
    """Whether the kill, `delay_s` after the run first changed the journal, hit a run that was still at work."""
    journal = out / "shards.jsonl"
    before = journal.stat().st_size if journal.exists() else -1
    with subprocess.Popen(
        [str(COMMAND), *arguments(world, out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline_s = time.monotonic() + AT_WORK_S
        while process.poll() is None and (journal.stat().st_size if journal.exists() else -1) == before:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def assert_kills_lose_nothing(world: World, out: Path, reference: Path, delays_s: list[float]) -> int:
    """How many kills hit; fails where one cost a committed sample, or the resumed cache differs from the reference."""
    num_hits = 0
    before: list[str] = []
    for delay_s in delays_s:
        num_hits += kill_at_work(world, out, delay_s)
        after = committed(out)
        assert after[: len(before)] == before
        before = after
    assert main(arguments(world, out)) == 0
    found, expected = open_cache(out), open_cache(reference)
    ids = expected.sample_ids.to_pylist()
    assert found.sample_ids.to_pylist() == ids  # in order, none lost, none twice
    for index in range(len(ids)):
        assert_equal_records(found.record(index), expected.record(index))
    assert verify(out).ok, verify(out).problems
    return num_hits


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of an uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "cache"
    assert main(arguments(world, out)) == 0
    return out


def test_two_random_kills_of_the_command_lose_nothing(world: World, reference: Path, tmp_path: Path) -> None:
    generator = random.Random(5)
    delays_s = [generator.uniform(0, 0.4) for _ in range(2)]
    assert assert_kills_lose_nothing(world, tmp_path / "cache", reference, delays_s) > 0


@pytest.mark.long
def test_a_hundred_random_kills_of_the_command_lose_nothing(world: World, reference: Path, tmp_path: Path) -> None:
    generator = random.Random(6)
    num_hits = 0
    for number in range(25):
        delays_s = [generator.uniform(0, 0.6) for _ in range(4)]
        num_hits += assert_kills_lose_nothing(world, tmp_path / f"cache {number}", reference, delays_s)
    assert num_hits >= 60

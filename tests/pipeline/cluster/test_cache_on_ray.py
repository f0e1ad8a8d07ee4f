"""`cache-teacher --ray`: parts as tasks of a real cluster give the cache of the local run, losses included."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.pipeline.cluster.local_cluster import LocalCluster
from tests.stages.test_caching_parts import arguments, assert_equal_caches
from tests.stages.test_caching_workers import whole as whole
from tests.world import World

from betakd_cache import diff
from betakd_cache.journal import Journal
from betakd_pipe.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


def writer_of(journal: Path) -> int:
    """The process that holds the lock of a part's journal."""
    inode = journal.stat().st_ino
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
    return int(held[0][4])


class KilledWriter(threading.Thread):
    """Kills whoever writes a part as soon as something of it is committed, and remembers what was."""

    def __init__(self, journal: Path) -> None:
        super().__init__(daemon=True)
        self._journal = journal
        self.committed = b""
        self.start()

    def run(self) -> None:
        deadline_s = time.monotonic() + 300
        while not (self._journal.is_file() and self._journal.stat().st_size) and time.monotonic() < deadline_s:
            time.sleep(0.002)
        os.kill(writer_of(self._journal), signal.SIGKILL)
        self.committed = self._journal.read_bytes()


def test_a_cluster_that_loses_a_worker_writes_the_cache_of_one_process(
    world: World, whole: Path, tmp_path: Path, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    killed = KilledWriter(out / "shards-1-of-2.jsonl")
    assert main(arguments(world, out, "--workers", "2", "--ray", cluster.address)) == 0
    killed.join()
    assert 1 <= killed.committed.count(b"\n") < 5, "the kill came too late to lose anything"
    assert b"complete" not in killed.committed
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith(f"{out}: 48 samples (48 new), ")
    assert "teacher: 48/48" in printed.err
    assert_equal_caches(out, whole)
    found = diff(out, whole)
    assert (found.id_agreement, found.largest_log_prob_difference) == (1.0, 0.0)
    assert (out / "shards-1-of-2.jsonl").read_bytes().startswith(killed.committed)


def test_a_part_that_fails_is_named_with_its_message_and_the_same_command_goes_on(
    world: World, whole: Path, tmp_path: Path, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process writes the second part: an error of the user is not tried again, and what is done is kept."""
    out = tmp_path / "cache"
    assert main(arguments(world, out, "--part", "0/2", "--limit", "20")) == 0
    other = Journal(out, (1, 2))
    capsys.readouterr()
    assert main(arguments(world, out, "--workers", "2", "--ray", cluster.address)) == 2
    other.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"betakd-pipe: part 2 of 2: {out} is being written by another process (part 1 of 2)")
    assert main(arguments(world, out, "--workers", "2", "--ray", cluster.address)) == 0
    assert_equal_caches(out, whole)

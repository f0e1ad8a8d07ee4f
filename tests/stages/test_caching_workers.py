"""`--workers`: several processes write one cache, one progress, and a failure of one stops the others cleanly."""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from tests.stages.test_caching import as_files, settings
from tests.stages.test_caching_parts import COMMAND, arguments, assert_equal_caches
from tests.stages.test_grounding import blind_teacher
from tests.world import World

from betakd_cache import diff, open_cache, verify
from betakd_pipe.cli import main
from betakd_stages.caching.run import cache_teacher
from betakd_stages.caching.workers import WorkerError, cache_teacher_in_workers, follow, share
from betakd_stages.errors import ConfigError
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


def finish(some: CacheTeacherSettings, out: Path) -> int:
    """How many samples were new when both parts of two workers were finished in this process."""
    parts = [cache_teacher(some, out, part=(number, 2), progress=SilentProgress()) for number in range(2)]
    return sum(part.num_new for part in parts)


class CountingProgress:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.num_advanced = 0

    def start(self, description: str, total: int, done: int = 0) -> None:
        self.started.append((total, done))

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self.num_advanced += num_units

    def finish(self) -> None:
        pass


def spawned(parent: int) -> list[int]:
    """The worker processes of a process, the first one first."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in sorted(commands.items()) if b"spawn_main" in command]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of one process that scores one sample at a time."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    cache_teacher(settings(world, batch_size=1), out, progress=SilentProgress())
    return out


def test_two_workers_write_what_one_process_does_bit_for_bit_in_one_progress_with_one_warning(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    progress = CountingProgress()
    some = settings(world, teacher=str(blind_teacher(world, tmp_path)), batch_size=1, shard_samples=5)
    with caplog.at_level(logging.WARNING):
        found = cache_teacher_in_workers(some, tmp_path / "two", num_workers=2, progress=progress)
    assert (found.is_complete, found.num_samples, found.num_new) == (True, 48, 48)
    assert (progress.started, progress.num_advanced) == ([(48, 0)], 48)
    messages = [record.getMessage() for record in caplog.records]
    assert len([text for text in messages if text.startswith("the teacher hardly looks at images")]) == 1
    cache_teacher(some, tmp_path / "one", progress=SilentProgress())
    assert_equal_caches(tmp_path / "two", tmp_path / "one")
    found_diff = diff(tmp_path / "one", tmp_path / "two")
    assert (found_diff.id_agreement, found_diff.largest_log_prob_difference) == (1.0, 0.0)


@pytest.mark.parametrize("part", [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_the_shares_of_workers_are_their_part_dealt_out_once(part: tuple[int, int]) -> None:
    samples = list(range(100))
    dealt = [samples[number::total] for number, total in (share(part, worker, 3) for worker in range(3))]
    assert sorted(sample for samples_of_one in dealt for sample in samples_of_one) == samples[part[0] :: part[1]]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_failing_worker_is_named_with_its_message_and_what_all_have_is_kept(world: World, tmp_path: Path) -> None:
    data = as_files(world, tmp_path / "data", 12)
    broken = tmp_path / "data" / "images" / "7.png"  # the fourth sample of the second worker
    good = broken.read_bytes()
    broken.write_bytes(good[:40])
    some = settings(world, data=data, batch_size=1, shard_samples=2)
    with pytest.raises(WorkerError) as caught:
        cache_teacher_in_workers(some, tmp_path / "cache", num_workers=2, progress=SilentProgress())
    assert str(caught.value).startswith(f"worker 2 of 2: sample 7: image {broken} is none of JPEG, PNG")
    broken.write_bytes(good)
    kept = len(open_cache(tmp_path / "cache", allow_incomplete=True))
    assert kept >= 3  # those of the second worker before the broken one
    assert finish(some, tmp_path / "cache") == 12 - kept
    assert verify(tmp_path / "cache").ok
    assert len(open_cache(tmp_path / "cache")) == 12


def test_a_killed_worker_is_named_with_the_likely_reason(world: World, tmp_path: Path) -> None:
    def kill_a_worker() -> None:
        while len(workers := spawned(os.getpid())) < 2:
            time.sleep(0.01)
        os.kill(workers[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(WorkerError) as caught:
        cache_teacher_in_workers(settings(world), tmp_path / "cache", num_workers=2, progress=SilentProgress())
    killer.join()
    assert re.fullmatch(
        r"worker [12] of 2 was killed \(signal 9\), perhaps for want of memory: the same command again goes on; "
        "fewer workers need less",
        str(caught.value),
    )


def die_of_a_bug() -> None:
    raise SystemExit(1)


def test_a_worker_that_ends_without_a_word_is_a_bug_whose_traceback_it_has_printed() -> None:
    process = multiprocessing.get_context("fork").Process(target=die_of_a_bug, name="worker 1 of 2")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process.start()
    sender.close()
    with pytest.raises(RuntimeError, match="worker 1 of 2 ended with exit code 1, its traceback is above"):
        follow({receiver: process}, SilentProgress())


@pytest.mark.parametrize(
    ("sent", "codes"),
    [(signal.SIGINT, (0, 130)), pytest.param(signal.SIGKILL, (0, -9), marks=pytest.mark.long)],
)
def test_workers_end_when_they_are_interrupted_or_left_alone_and_what_they_have_is_kept(
    world: World, whole: Path, tmp_path: Path, sent: signal.Signals, codes: tuple[int, ...]
) -> None:
    out = tmp_path / "cache"
    with subprocess.Popen(
        [str(COMMAND), *arguments(world, out, "--workers", "2")], stderr=subprocess.DEVNULL
    ) as process:
        deadline_s = time.monotonic() + 300
        while not list(out.glob("shard-*.parquet")):
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        workers = spawned(process.pid)
        process.send_signal(sent)
        assert process.wait(timeout=300) in codes
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    kept = len(open_cache(out, allow_incomplete=True))
    assert kept >= 5
    assert finish(settings(world, batch_size=1), out) == 48 - kept
    assert_equal_caches(out, whole)


def test_one_teacher_over_all_gpus_and_several_workers_exclude_each_other(world: World, tmp_path: Path) -> None:
    some = settings(world, device_map="auto")
    with pytest.raises(
        ConfigError, match="device_map auto spreads one teacher over all GPUs, 2 workers have one teach"
    ):
        cache_teacher_in_workers(some, tmp_path / "cache", num_workers=2, progress=SilentProgress())


def test_workers_cannot_overwrite(world: World, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(world, whole, "--workers", "2", "--overwrite")) == 2
    assert capsys.readouterr().err == (
        f"betakd-pipe: --workers 2 and --overwrite: several writers cannot overwrite {whole}; remove it first\n"
    )

"""Whatever kills a writer, the next one loses no committed sample, stores none twice, and ends with the same values."""

import contextlib
import errno
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cache.records import assert_equal_records, make_records, write_cache, writer_for
from tests.cache.writer_process import RECORDS as PROCESS_RECORDS
from tests.cache.writer_process import write_what_is_missing

from betakd_cache import CacheError, TokenRule, files, open_cache, read_manifest, verify

RULE = TokenRule(top_k=8, top_p=0.99)
RECORDS = make_records(5, 64, RULE)


def committed(path: Path) -> list[str]:
    """The ids that the cache holds at this moment; none if it has not come to be."""
    if not (path / "manifest.json").exists():
        return []
    return open_cache(path, allow_incomplete=True).sample_ids.to_pylist()


def assert_whole(path: Path, reference: Path) -> None:
    """Nothing; fails unless both complete caches hold the same samples once, with the same values, undamaged."""
    found, expected = open_cache(path), open_cache(reference)
    ids = expected.sample_ids.to_pylist()
    assert sorted(found.sample_ids.to_pylist()) == sorted(ids)
    for index, place in enumerate(found.index_of(ids)):
        assert_equal_records(found.record(int(place)), expected.record(index))
    assert verify(path).ok, verify(path).problems


def kill_and_resume(path: Path, delays_s: list[float]) -> int:
    """How many of the kills hit a writer at work; each must leave what was committed before."""
    num_hits = 0
    before: list[str] = []
    for delay_s in delays_s:
        command = [sys.executable, "-m", "tests.cache.writer_process", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            num_hits += process.wait() == -signal.SIGKILL
        after = committed(path)
        assert after[: len(before)] == before
        before = after
    return num_hits


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "cache"
    write_what_is_missing(path)
    return path


def test_five_random_kills_lose_nothing(tmp_path: Path, reference: Path) -> None:
    generator = random.Random(20)
    assert kill_and_resume(tmp_path / "cache", [generator.uniform(0, 0.12) for _ in range(5)]) > 0
    write_what_is_missing(tmp_path / "cache")
    assert len(open_cache(tmp_path / "cache")) == len(PROCESS_RECORDS)
    assert_whole(tmp_path / "cache", reference)


@pytest.mark.long
def test_a_hundred_random_kills_lose_nothing(tmp_path: Path, reference: Path) -> None:
    generator = random.Random(21)
    num_hits = 0
    for number in range(20):
        path = tmp_path / f"cache {number}"
        num_hits += kill_and_resume(path, [generator.uniform(0, 0.25) for _ in range(5)])
        write_what_is_missing(path)
        assert_whole(path, reference)
    assert num_hits >= 50


class Crash(BaseException):
    """Stands for the death of the process."""


SEAM = ("make_directory", "write", "sync", "rename", "create_whole", "replace_whole", "remove", "append")


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int, half: bool) -> Callable[[], int]:
    """Make the step-th change of the file system the last: not at all, or (append, write) only half of it."""
    done = [0]
    for name in SEAM:
        original = getattr(files, name)

        def changed(*arguments: Any, original: Any = original, name: str = name) -> Any:
            done[0] += 1
            if done[0] == step:
                if half and name == "append":
                    os.write(arguments[1], arguments[2][: len(arguments[2]) // 2])
                if half and name == "write":
                    arguments[0].write_bytes(b"half")
                raise Crash
            return original(*arguments)

        monkeypatch.setattr(files, name, changed)
    return lambda: done[0]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_crash_at_any_single_step_loses_nothing(tmp_path: Path, half: bool, stride: int) -> None:
    def write(path: Path) -> None:
        writer = writer_for(path, RULE, 64, feature_sizes={}, shard_samples=3)
        with contextlib.closing(writer):  # a dead process gives up its lock
            for record in records:
                if record.sample_id not in writer.stored:
                    writer.append(record)
            writer.complete()

    records = make_records(5, 64, RULE, feature_sizes={})
    write(tmp_path / "reference")
    for step in itertools.count(1, stride):
        path = tmp_path / f"cache {step}"
        with pytest.MonkeyPatch.context() as patch:
            steps = crash_at(patch, step, half)
            try:
                write(path)
            except Crash:
                pass
            else:
                break
        assert len(committed(path)) in (0, 3, 5)
        write(path)
        assert_whole(path, tmp_path / "reference")
        assert not list(path.glob(".tmp-*"))
    assert 80 < steps() < step


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.long)])
def test_a_crash_while_a_complete_cache_is_extended_leaves_it_complete_or_to_be_resumed(
    tmp_path: Path, stride: int
) -> None:
    def extend(path: Path) -> None:
        writer = writer_for(path, RULE, 64, feature_sizes={}, shard_samples=3)
        with contextlib.closing(writer):
            writer.extend([record for record in records if record.sample_id not in writer.stored])
            writer.complete()

    records = make_records(5, 64, RULE, feature_sizes={})
    extend(tmp_path / "reference")
    states = set()
    for step in itertools.count(1, stride):
        path = tmp_path / f"cache {step}"
        write_cache(path, records[:2], RULE, 64, feature_sizes={}, shard_samples=3)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, step, half=False)
            try:
                extend(path)
            except Crash:
                pass
            else:
                break
        states.add(read_manifest(path).state)
        assert len(committed(path)) in (2, 5)
        extend(path)
        assert_whole(path, tmp_path / "reference")
        assert not list(path.glob(".tmp-*"))
    assert states == {"complete", "open"}


class FullDevice(io.RawIOBase):
    """A file on a device that takes nothing more."""

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            r"cannot write .*: No space left on device; free some space and run the same command again",
        ),
        (errno.EROFS, r"cannot write .*: Read-only file system; write to a file system that is not read-only"),
        (errno.EIO, r"cannot write .*: Input/output error; mend the file system and run the same command again"),
    ],
)
def test_a_failing_device_is_named_and_the_writer_goes_on_when_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "cache"
    with writer_for(path, RULE, 64, shard_samples=2) as writer:
        writer.append(RECORDS[0])
        writer.append(RECORDS[1])
        with monkeypatch.context() as patch:
            patch.setattr(files, "open", lambda *_: FullDevice(number), raising=False)
            writer.append(RECORDS[2])
            with pytest.raises(CacheError, match=message) as caught:
                writer.append(RECORDS[3])
            assert "\n" not in str(caught.value)
            assert committed(path) == ["train/0", "train/1"]
        writer.append(RECORDS[4])
        writer.complete()
    assert open_cache(path).sample_ids.to_pylist() == [record.sample_id for record in RECORDS]
    assert verify(path).ok


def test_a_journal_line_that_does_not_fit_on_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache"
    original = files.append

    def append_half(path: Path, descriptor: int, content: bytes) -> None:
        os.write(descriptor, content[:40])
        with files.naming(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with writer_for(path, RULE, 64, shard_samples=2) as writer:
        writer.append(RECORDS[0])
        monkeypatch.setattr(files, "append", append_half)
        with pytest.raises(CacheError, match="No space left on device"):
            writer.append(RECORDS[1])
        monkeypatch.setattr(files, "append", original)
        assert (path / "shards.jsonl").read_bytes() == b""
        writer.append(RECORDS[2])
        writer.complete()
    assert len(open_cache(path)) == 3
    assert verify(path).ok

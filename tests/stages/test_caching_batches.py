"""Buckets of similar length and preparation in threads: what is cached is what one sample at a time gives, in order."""

import dataclasses
import json
import threading
import time
from pathlib import Path

import pytest
from tests.cache.records import assert_equal_records
from tests.stages.test_caching import settings
from tests.world import World

from betakd_cache import CacheWriter, diff, open_cache
from betakd_stages.caching import batching
from betakd_stages.caching import run as caching
from betakd_stages.caching.batching import length_buckets, prepared_windows
from betakd_stages.caching.run import cache_teacher, preparing_encoders
from betakd_stages.data import load_samples
from betakd_stages.data.sample import LoadedImage, Sample
from betakd_stages.encoding import Encoder
from betakd_stages.errors import DataError
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import SilentProgress
from betakd_stages.teachers.hf import HuggingFaceTeacher
from betakd_stages.teachers.opening import open_hf_teacher

FLOAT32_NOISE = 1e-5
"""Nats: other samples in a batch change the order of sums, and with them the last bits."""


def of_many_lengths(world: World, folder: Path) -> str:
    """The world's questions over and over in one conversation, with one to four turns, every third without an image."""
    (folder / "images").mkdir(parents=True)
    entries = []
    for index, sample in enumerate(load_samples(world.data)[:24]):
        assert sample.image is not None
        sample.image.load().pixels.save(folder / "images" / f"{index}.png")
        turn = sample.turns[0]
        talk = [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer}]
        image = {} if index % 3 == 0 else {"image": f"{index}.png"}
        entries.append({"id": str(index), **image, "conversations": talk * (1 + index * 7 % 4)})
    (folder / "data.json").write_text(json.dumps(entries))
    return f"llava:{folder}/data.json?images={folder}/images"


def test_buckets_and_threads_change_neither_order_nor_shards_and_numbers_by_rounding_only(
    world: World, tmp_path: Path
) -> None:
    data = of_many_lengths(world, tmp_path / "data")
    plain = settings(world, data=data, batch_size=1, bucket_window=1, preparing_threads=1, shard_samples=7)
    bucketed = settings(world, data=data, batch_size=3, bucket_window=4, preparing_threads=3, shard_samples=7)
    cache_teacher(plain, tmp_path / "plain", progress=SilentProgress())
    cache_teacher(bucketed, tmp_path / "bucketed", progress=SilentProgress())
    one, other = open_cache(tmp_path / "plain"), open_cache(tmp_path / "bucketed")
    assert other.sample_ids.to_pylist() == one.sample_ids.to_pylist() == [str(number) for number in range(24)]
    assert other.shard_ranges() == one.shard_ranges()
    for index in range(24):
        assert other.record(index).token_ids.tolist() == one.record(index).token_ids.tolist()
    found = diff(tmp_path / "plain", tmp_path / "bucketed")
    assert (found.num_shared, found.num_other_tokens, found.top_agreement) == (24, 0, 1.0)
    step = 2.0**-11  # of stored gaps: a number beside a boundary falls to either side
    assert found.largest_log_prob_difference <= step + FLOAT32_NOISE


def test_the_same_run_twice_is_the_same_bit_for_bit_whatever_thread_was_faster(world: World, tmp_path: Path) -> None:
    data = of_many_lengths(world, tmp_path / "data")
    some = settings(world, data=data, batch_size=3, bucket_window=4, preparing_threads=3)
    for name in ("first", "second"):
        cache_teacher(some, tmp_path / name, progress=SilentProgress())
    first, second = open_cache(tmp_path / "first"), open_cache(tmp_path / "second")
    for index in range(24):
        assert_equal_records(first.record(index), second.record(index))


def test_buckets_put_the_longest_first_and_hold_each_position_once() -> None:
    assert length_buckets([5, 9, 5, 7, 9], 2) == [[1, 4], [3, 0], [2]]
    assert length_buckets([], 2) == []


def test_a_bucket_holds_less_padding_than_samples_as_they_come(world: World, tmp_path: Path) -> None:
    encoder = load_encoder(world.teacher)
    samples = load_samples(of_many_lengths(world, tmp_path / "data"))
    lengths = [len(encoder.encode(sample).input_ids) for sample in samples]

    def positions(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)

    as_they_come = [list(range(start, start + 4)) for start in range(0, 24, 4)]
    assert positions(length_buckets(lengths, 4)) < 0.8 * positions(as_they_come)


@dataclasses.dataclass(frozen=True)
class WatchedImage:
    """An image that notes who reads it, and when."""

    image: object
    reads: list[str]
    error: Exception | None = None

    def load(self) -> LoadedImage:
        self.reads.append(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        return self.image.load()  # type: ignore[attr-defined]

    def sha256(self) -> str:
        return self.load().sha256


def watched(world: World, reads: list[str], errors: dict[int, Exception]) -> list[Sample]:
    samples = load_samples(world.data)[:20]
    return [
        dataclasses.replace(sample, image=WatchedImage(sample.image, reads, errors.get(number)))
        for number, sample in enumerate(samples)
    ]


def encoders(world: World, number: int) -> list[Encoder]:
    some = settings(world, preparing_threads=number)
    return preparing_encoders(some, open_hf_teacher(some))


def without_grounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the run's own batches are the only ones the teacher scores."""
    monkeypatch.setattr(caching, "check_grounding", lambda *arguments, **named: None)


def test_no_more_than_one_window_is_prepared_ahead_and_never_by_the_main_thread(world: World) -> None:
    reads: list[str] = []
    windows = prepared_windows(watched(world, reads, {}), encoders(world, 2), 4)
    first = next(windows)
    time.sleep(0.5)
    assert len(first) == 4
    assert len(reads) == 4 * (1 + batching.WINDOWS_AHEAD)
    assert all(name.startswith("prepare") for name in reads)
    windows.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
    assert len(reads) <= 4 * (2 + batching.WINDOWS_AHEAD)


def test_a_sample_that_cannot_be_had_is_a_reason_and_any_other_error_ends_the_run(world: World) -> None:
    broken = watched(world, [], {1: DataError("image x is corrupt"), 9: MemoryError("no more")})
    windows = prepared_windows(broken, encoders(world, 2), 4)
    reasons = [prepared.reason for prepared in next(windows)]
    assert reasons == ["", "image x is corrupt", "", ""]
    next(windows)
    with pytest.raises(MemoryError, match="no more"):
        next(windows)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_an_error_of_the_writing_thread_ends_the_run_and_what_was_written_before_stays(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CacheWriter.extend

    def full(self: CacheWriter, records: list[object]) -> None:
        if len(self.stored) >= 16:
            raise OSError(28, "No space left on device")
        original(self, records)  # type: ignore[arg-type]

    monkeypatch.setattr(CacheWriter, "extend", full)
    some = settings(world, batch_size=4, bucket_window=2, shard_samples=8)
    with pytest.raises(OSError, match="No space left on device"):
        cache_teacher(some, tmp_path / "cache", progress=SilentProgress())
    assert len(open_cache(tmp_path / "cache", allow_incomplete=True)) == 16
    monkeypatch.undo()
    assert cache_teacher(some, tmp_path / "cache", progress=SilentProgress()).num_new == 32


def test_a_window_is_scored_while_the_one_before_is_being_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer holds on to the first window until a batch of the second is scored: one after the other cannot end."""
    some = settings(world, batch_size=4, bucket_window=2)
    without_grounding(monkeypatch)
    kind = HuggingFaceTeacher
    score, extend = kind.score, CacheWriter.extend
    num_scored = 0
    second_window = threading.Event()

    def counted(self: object, encoded: list[object]) -> object:
        nonlocal num_scored
        num_scored += 1
        if num_scored > 2:
            second_window.set()
        return score(self, encoded)  # type: ignore[arg-type]

    def held(self: CacheWriter, records: list[object]) -> None:
        assert second_window.wait(timeout=60)
        extend(self, records)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "score", counted)
    monkeypatch.setattr(CacheWriter, "extend", held)
    assert cache_teacher(some, tmp_path / "cache", progress=SilentProgress()).num_new == 48


def test_an_interrupted_run_keeps_whole_windows_and_the_same_call_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = settings(world, batch_size=4, bucket_window=2, shard_samples=100)
    without_grounding(monkeypatch)
    kind = HuggingFaceTeacher
    original, scored = kind.score, []

    def interrupted(self: object, encoded: list[object]) -> object:
        scored.append(len(encoded))
        if len(scored) == 6:
            raise KeyboardInterrupt
        return original(self, encoded)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(some, tmp_path / "cache", progress=SilentProgress())
    monkeypatch.undo()
    ids = open_cache(tmp_path / "cache", allow_incomplete=True).sample_ids.to_pylist()
    assert ids == [sample.sample_id for sample in load_samples(world.data)[:16]]
    assert cache_teacher(some, tmp_path / "cache", progress=SilentProgress()).num_new == 32

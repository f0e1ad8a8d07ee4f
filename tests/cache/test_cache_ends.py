"""The ends of writing: a part that goes on is not complete, and a writer that fails at once leaves nothing behind."""

import contextlib
from pathlib import Path

import pytest
from tests.cache.records import make_records, write_cache, writer_for

from betakd_cache import CacheError, CacheWriter, TokenRule, open_cache, read_manifest, verify
from betakd_cache.journal import read_journal

RULE = TokenRule(top_k=9, top_p=0.99)
VOCABULARY = 300
RECORDS = make_records(6, VOCABULARY, RULE)


class Stopped(Exception):
    """What ends a writer in these tests."""


@pytest.mark.parametrize(
    ("lines", "complete"),
    [
        (['{"complete":true}'], True),
        (['{"complete":true}', '{"rejected":"a","reason":"b"}'], False),
        (['{"complete":true}', '{"rejected":"a","reason":"b"}', '{"complete":true}'], True),
        (['{"complete":true}', '{"shard":"s","num_samples":1,"num_tokens":1,"num_entries":1,"files":{}}'], False),
        ([], False),
    ],
)
def test_a_part_is_complete_only_while_its_journal_ends_by_saying_so(
    tmp_path: Path, lines: list[str], complete: bool
) -> None:
    journal = tmp_path / "shards.jsonl"
    journal.write_text("".join(f"{line}\n" for line in lines))
    assert read_journal(journal).complete == complete


def test_a_part_that_rejects_further_samples_keeps_the_others_from_completing_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer_for(path, RULE, VOCABULARY, part=(number, 2))) for number in range(2)]
        for number, writer in enumerate(writers):
            writer.append(RECORDS[number])
            assert writer.complete() == (number == 1)
        writers[0].reject("train/x", "no image")
        assert not writers[1].complete()
        assert read_manifest(path).state == "open"
        assert writers[0].complete()
    assert open_cache(path).rejected == {"train/x": "no image"}
    assert verify(path).ok, verify(path).problems


def stop(writer: CacheWriter) -> None:
    """End a writer by an error."""
    with pytest.raises(Stopped), writer:
        raise Stopped


def test_a_writer_that_fails_before_its_first_commit_takes_its_folder_away(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    writer = writer_for(path, RULE, VOCABULARY)
    writer.append(RECORDS[0])
    stop(writer)
    assert not path.exists()
    assert len(write_cache(path, RECORDS, RULE, VOCABULARY)) == 6


def test_what_was_committed_stays_and_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    writer = writer_for(path, RULE, VOCABULARY, shard_samples=1)
    writer.append(RECORDS[0])
    stop(writer)
    assert len(open_cache(path, allow_incomplete=True)) == 1
    with writer_for(path, RULE, VOCABULARY) as resumed:
        assert resumed.stored == {"train/0"}


def test_a_rejection_counts_as_committed(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "cache", RULE, VOCABULARY)
    writer.reject("train/x", "no image")
    stop(writer)
    assert open_cache(tmp_path / "cache", allow_incomplete=True).rejected == {"train/x": "no image"}


def test_a_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    stop(writer_for(tmp_path / "cache", RULE, VOCABULARY))
    assert (tmp_path / "cache").is_dir()


def test_an_empty_cache_of_an_earlier_call_stays(tmp_path: Path) -> None:
    writer_for(tmp_path / "cache", RULE, VOCABULARY).close()
    stop(writer_for(tmp_path / "cache", RULE, VOCABULARY))
    assert read_manifest(tmp_path / "cache").state == "open"


def test_the_folder_stays_where_another_part_is_at_work_or_somebody_put_a_file(tmp_path: Path) -> None:
    first = writer_for(tmp_path / "cache", RULE, VOCABULARY, part=(0, 2))
    with writer_for(tmp_path / "cache", RULE, VOCABULARY, part=(1, 2)) as second:
        stop(first)
        second.append(RECORDS[0])
    assert len(open_cache(tmp_path / "cache", allow_incomplete=True)) == 1
    third = writer_for(tmp_path / "other", RULE, VOCABULARY)
    (tmp_path / "other" / "notes.txt").write_text("mine")
    stop(third)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_a_shard_that_the_disk_cannot_hold_leaves_the_cache_to_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, arrays: object) -> None:
        raise CacheError("no space left")

    writer = writer_for(tmp_path / "cache", RULE, VOCABULARY)
    writer.append(RECORDS[0])
    with monkeypatch.context() as patched:
        patched.setattr("betakd_cache.writer.write_group", full)
        with pytest.raises(CacheError, match="no space left"), writer:
            writer.flush()
    assert len(write_cache(tmp_path / "cache", RECORDS, RULE, VOCABULARY)) == 6

"""Damage of every kind is found, and named in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.cache.records import make_records, write_cache, writer_for

from betakd_cache import CacheError, TokenRule, open_cache, verify
from betakd_cache.layout import FORMAT_VERSION

RULE = TokenRule(top_k=8, top_p=0.99)
RECORDS = make_records(4, 64, RULE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache", RECORDS, RULE, 64, shard_samples=2).path


def all_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def problems(path: Path) -> str:
    try:
        return "\n".join(verify(path).problems)
    except CacheError as error:
        return str(error)


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


def test_an_untouched_cache_verifies_and_says_what_was_read(path: Path) -> None:
    found = verify(path)
    assert found.ok
    assert found.num_files == len(all_files(path)) - 3  # the manifest, the journal and rejected.parquet
    assert found.to_json()["problems"] == []
    assert found.size_bytes == open_cache(path).manifest.counts.size_bytes


def test_a_flipped_bit_in_any_file_is_found_and_the_file_is_named(path: Path) -> None:
    generator = np.random.default_rng(3)
    files = all_files(path)
    assert len(files) > 60
    for file in files:
        original = file.read_bytes()
        for position in {0, len(original) - 1, int(generator.integers(len(original)))}:
            flip(file, position)
            found = problems(path)
            assert file.relative_to(path).as_posix() in found or file.name in found, (file, position)
            file.write_bytes(original)
    assert verify(path).ok


def test_zarr_python_finds_a_flipped_bit_in_every_array_by_its_own_checksum(path: Path) -> None:
    chunks = [file for file in all_files(path) if "/c/0" in file.as_posix()]
    assert len(chunks) > 30
    for chunk in chunks:
        array = chunk.parents[len(chunk.parts) - 1 - chunk.parts.index("c")]
        original = chunk.read_bytes()
        zarr.open_array(array, mode="r")[:]
        flip(chunk, len(original) // 2)
        with pytest.raises(ValueError, match="checksum"):
            zarr.open_array(array, mode="r")[:]
        chunk.write_bytes(original)


@pytest.mark.parametrize("access", ["mmap", "pread"])
def test_a_missing_file_is_found(path: Path, access: str) -> None:
    (path / "shard-000001.zarr" / "ids" / "c" / "0").unlink()
    assert verify(path).problems == ("shard-000001.zarr/ids/c/0 is missing",)
    with pytest.raises(CacheError, match=r"000001.zarr/ids/c/0 cannot be read .*; run `betakd-pipe cache verify`"):
        open_cache(path, access=access).batch([2])
    (path / "rejected.parquet").unlink()
    assert "rejected.parquet is missing" in verify(path).problems


@pytest.mark.parametrize("access", ["mmap", "pread"])
def test_a_truncated_array_is_found_on_first_use(path: Path, access: str) -> None:
    chunk = path / "shard-000000.zarr" / "gap" / "c" / "0"
    size_bytes = chunk.stat().st_size
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert verify(path).problems == (
        f"shard-000000.zarr/gap/c/0 is {size_bytes - 1} bytes long, expected {size_bytes}",
    )
    with pytest.raises(CacheError, match=rf"gap/c/0 is {size_bytes - 1} bytes long, expected {size_bytes}; restore it"):
        open_cache(path, access=access).batch([0])


def test_a_damaged_parquet_file_is_named_on_first_use(path: Path) -> None:
    (path / "shard-000000.parquet").write_bytes(b"not Parquet")
    with pytest.raises(CacheError, match=r"000000.parquet cannot be read .*; run `betakd-pipe cache verify`") as e:
        open_cache(path).rows()
    assert "\n" not in str(e.value)


def test_a_superfluous_shard_is_found(path: Path) -> None:
    shutil.copytree(path / "shard-000000.zarr", path / "shard-000002.zarr")
    assert "shard-000002.zarr/zarr.json is superfluous, no journal lists it" in verify(path).problems


def test_permuted_shards_are_found(path: Path) -> None:
    first, second, aside = (path / f"shard-{name}.zarr" for name in ("000000", "000001", "aside"))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    found = verify(path).problems
    assert any(line.startswith("shard-000000.zarr/ids/c/0 ") for line in found)
    assert any(line.startswith("shard-000001.zarr/ids/c/0 ") for line in found)


def test_a_journal_that_lost_its_last_line_is_found_at_once(path: Path) -> None:
    journal = path / "shards.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0])
    with pytest.raises(CacheError, match=r"has journals that list 1 shards, expected 2; restore it from a copy"):
        open_cache(path)
    assert "the journals list 1 shards, the manifest 2" in verify(path).problems


def test_a_journal_with_a_damaged_line_names_the_line(path: Path) -> None:
    flip(path / "shards.jsonl", 0)
    with pytest.raises(CacheError, match=r"shards.jsonl is damaged at line 1 .*; restore it from a copy") as caught:
        open_cache(path)
    assert "\n" not in str(caught.value)


def test_a_missing_cache_and_what_is_no_cache_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"nowhere does not exist; give the path of a cache, or write one with"):
        open_cache(tmp_path / "nowhere")
    with pytest.raises(CacheError, match=r"is not a cache, it has no manifest.json; give the path of a cache"):
        open_cache(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(CacheError, match=r"is not a cache, its manifest.json is of another format; give the path"):
        open_cache(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CacheError, match=r"manifest.json is damaged .*; restore it from a copy or write"):
        open_cache(tmp_path)


def test_an_edited_manifest_is_refused(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"a1"', '"a2"'))
    with pytest.raises(CacheError, match=r"is damaged or was edited, its sha256 does not match; restore it"):
        open_cache(path)


def test_a_newer_format_version_is_refused_by_name(path: Path) -> None:
    fields = json.loads((path / "manifest.json").read_text())
    fields["format_version"] = FORMAT_VERSION + 1
    (path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(CacheError, match=r"has cache format version 2, this program reads version 1; install the"):
        open_cache(path)


def test_an_incomplete_cache_is_refused_unless_asked_for(tmp_path: Path) -> None:
    with writer_for(tmp_path / "cache", RULE, 64, shard_samples=2) as writer:
        for record in RECORDS[:3]:
            writer.append(record)
    with pytest.raises(CacheError, match=r"is incomplete; run the command that writes it once more, it resumes") as e:
        open_cache(tmp_path / "cache")
    assert "\n" not in str(e.value)
    assert len(open_cache(tmp_path / "cache", allow_incomplete=True)) == 3
    assert verify(tmp_path / "cache").ok

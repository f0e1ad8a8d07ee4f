"""What goes wrong between here and an object store is said in one line."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from tests.cache.object_store import serve
from tests.cache.records import make_records, write_cache, writer_for

from betakd_cache import CacheError, TokenRule, open_cache, verify
from betakd_cache.object_store import ObjectStore

RULE = TokenRule(top_k=4, top_p=0.99, temperatures=(1.0,))
RECORDS = make_records(3, 64, RULE, feature_sizes={})
URL = "s3://bucket/cache"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "staged"))
    yield from serve(monkeypatch)


def message_of(url: str = URL) -> str:
    """The one line that reading the whole cache at `url` ends with."""
    with pytest.raises(CacheError) as caught:
        open_cache(url).record(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_bucket_and_a_missing_cache_are_told_apart(system: s3fs.S3FileSystem) -> None:
    assert message_of("s3://nowhere/cache").startswith("s3://nowhere/cache/manifest.json: the bucket does not exist")
    assert message_of() == "s3://bucket/cache is not a cache, it has no manifest.json; give the path of a cache"
    with pytest.raises(CacheError, match="the bucket does not exist; create it or give another URL"):
        writer_for("s3://nowhere/cache", RULE, 64)


def test_refused_and_missing_credentials_name_the_variables_to_set(
    system: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def refused(*_: object, **__: object) -> bytes:
        raise PermissionError("Forbidden")

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_cat_file", refused)
        s3fs.S3FileSystem.clear_instance_cache()
        assert message_of().startswith("s3://bucket/cache/manifest.json: access is refused (Forbidden); set AWS_")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message_of()


def test_an_endpoint_that_does_not_answer_is_named_with_what_to_check(
    system: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "s3://bucket/cache/manifest.json cannot be reached" in message_of()


def test_missing_and_changed_objects_are_named_by_reader_and_verify(system: s3fs.S3FileSystem) -> None:
    with writer_for(URL, RULE, 64, feature_sizes={}) as writer:
        writer.extend(RECORDS)
        writer.complete()
    path = next(name for name in system.find("bucket") if name.endswith("/gap/c/0"))
    content = system.cat_file(path)
    system.pipe_file(path, bytes([content[0] ^ 1]) + content[1:])
    assert message_of().startswith(f"s3://{path} is not what was written, its sha256 differs; restore it from a copy")
    name = path.removeprefix("bucket/cache/")
    assert verify(URL).problems == (f"{name} is not what was written, its sha256 differs",)
    system.rm(path)
    assert message_of().startswith(f"s3://{path} is missing; restore it from a copy")
    assert verify(URL).problems == (f"{name} is missing",)
    system.pipe_file(path, content)
    assert verify(URL).ok
    commit = next(name for name in system.find("bucket/cache/commits"))
    system.pipe_file(commit, system.cat_file(commit) + b"\n")
    (problem,) = verify(URL).problems
    assert problem.startswith("commits/")
    system.pipe_file("bucket/cache/shards.jsonl", b"")
    assert message_of().startswith("s3://bucket/cache/shards.jsonl is not what was written")


def test_a_missing_commit_of_an_open_cache_is_named(system: s3fs.S3FileSystem) -> None:
    with writer_for(URL, RULE, 64, feature_sizes={}, shard_samples=1) as writer:
        writer.extend(RECORDS)
    first = next(name for name in system.find("bucket/cache/commits"))
    system.rm(first)
    with pytest.raises(CacheError, match=r"has commit commits/.*/00000001, expected commits/.*/00000000; restore"):
        open_cache(URL, allow_incomplete=True)


def test_a_place_with_other_objects_and_another_identity_are_not_written_to(system: s3fs.S3FileSystem) -> None:
    system.pipe_file("bucket/cache/notes.txt", b"mine")
    with pytest.raises(CacheError, match=r"^s3://bucket/cache holds notes.txt and is not a cache; give an URL below"):
        writer_for(URL, RULE, 64)
    writer_for("s3://bucket/other", RULE, 64).close()
    with pytest.raises(CacheError, match=r"^s3://bucket/other was written with teacher = "):
        writer_for("s3://bucket/other", RULE, 64, identity={"teacher": "b", "prompt": {"version": 1}})


def test_a_complete_cache_takes_no_further_samples(system: s3fs.S3FileSystem) -> None:
    with writer_for(URL, RULE, 64, feature_sizes={}) as writer:
        writer.extend(RECORDS[:2])
        writer.complete()
    with pytest.raises(CacheError, match="s3://bucket/cache is complete; write further samples to another cache"):  # noqa: SIM117
        with writer_for(URL, RULE, 64, feature_sizes={}) as writer:
            writer.extend(RECORDS[2:])


def test_urls_that_cannot_be_read_or_written_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CacheError, match="^ftp://host/cache cannot be read; give a folder, or an URL with a bucket"):
        open_cache("ftp://host/cache")
    for scheme in ("gs", "hf"):
        with pytest.raises(CacheError, match=f"^{scheme}://a/b can be read but not written; write to a folder or to"):
            writer_for(f"{scheme}://a/b", RULE, 64)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(CacheError, match="^gs://a/b/manifest.json needs the package gcsfs; run `pip install gcsfs`"):
        open_cache("gs://a/b")


def test_other_stores_are_read_through_fsspec_without_any_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec.core
    from fsspec.implementations.local import LocalFileSystem

    local = write_cache(tmp_path / "local", RECORDS, RULE, 64)

    def found(url: str, **_: object) -> tuple[LocalFileSystem, str]:
        return LocalFileSystem(), url.replace("hf://datasets/me/cache", str(local.path))

    monkeypatch.setattr(fsspec.core, "url_to_fs", found)
    cache = open_cache("hf://datasets/me/cache", staging=tmp_path / "staged")
    assert cache.sample_ids.to_pylist() == local.sample_ids.to_pylist()
    assert (cache.batch([2, 0]).ids() == local.batch([2, 0]).ids()).all()
    assert ObjectStore("hf://datasets/me/cache/").url == "hf://datasets/me/cache"

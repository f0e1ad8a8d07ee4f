"""Folders that are there whole or not at all."""

from pathlib import Path

import pytest

from betakd_stages.errors import ConfigError
from betakd_stages.files import written_whole


def test_a_folder_appears_when_all_is_written_and_replaces_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    for content in ("first", "second"):
        with written_whole(out, overwrite=True, replaces=("marker",)) as folder:
            (folder / "marker").write_text(content)
            assert not out.exists() or (out / "marker").read_text() == "first"
        assert (out / "marker").read_text() == content
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_fails_leaves_the_folder_before_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with written_whole(out) as folder:
        (folder / "marker").touch()

    def fail() -> None:
        with written_whole(out, overwrite=True, replaces=("marker",)) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/marker"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".tmp-out").mkdir()
    (tmp_path / ".tmp-out" / "half").touch()
    with written_whole(tmp_path / "out") as folder:
        (folder / "marker").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/marker"]


def test_an_empty_folder_is_free_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with written_whole(tmp_path / "out") as folder:
        (folder / "marker").touch()
    assert (tmp_path / "out" / "marker").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not empty: choose another --out"), written_whole(tmp_path / "file"):
        pass

"""Rows of JSON files: the same as json.load's, read one at a time, in little memory."""

import json
import tracemalloc
from pathlib import Path

import pytest

from betakd_stages.data import json_rows
from betakd_stages.data.json_rows import JsonRows
from betakd_stages.errors import DataError

HARD_TEXT = 'quoted "brackets" ]},{[ \\ äöü 漢字 🙂'
ROWS = [{"id": number, "text": HARD_TEXT * (number % 3), "deep": [{"a": []}]} for number in range(50)]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "rows.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 2**20])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, ensure_ascii=False),
        "\ufeff \n" + json.dumps(ROWS, ensure_ascii=False, indent=2) + "\r\n ",
        "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
        "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    ],
)
def test_rows_are_those_of_json_load_wherever_the_window_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", chunk_bytes)
    rows = JsonRows(write(tmp_path, text))
    assert len(rows) == len(ROWS)
    assert [rows[index] for index in range(len(ROWS))] == ROWS
    assert rows[-1] == ROWS[-1]


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    assert len(JsonRows(write(tmp_path, " [ ] "))) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with '': expected a JSON list of objects, or one object per line (JSONL)"),
        ('"text"', "begins with '\"': expected a JSON list of objects"),
        ("[{}", "is not JSON ('the end' stands where ',' is expected, at byte 3): correct it"),
        ("[{},]", "is not JSON (Expecting value, at byte 4): correct it"),
        ("[{} {}]", "is not JSON ('{' stands where ',' is expected, at byte 4): correct it"),
        ('[{"a": 1', "is not JSON (Expecting ',' delimiter, at byte 1): correct it"),
        ('[{"a": "cut', "is not JSON (Unterminated string starting at, at byte 1): correct it"),
        ("[{}] more", "is not JSON ('m' follows the list, at byte 5): correct it"),
        ("[" * 100_000, "is not JSON (maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_not_json_is_refused_at_the_byte(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        JsonRows(write(tmp_path, text))
    assert str(caught.value).startswith(f"data file {tmp_path}/rows.json {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{}\n{"a"\n', "row 1 of {path} is not JSON (Expecting ':' delimiter"),
        ("[{}, 7]", "row 1 of {path} is a int: expected an object"),
        (b'{}\n{"a": "\xff"}', "row 1 of {path} is not JSON ('utf-8' codec can't decode"),
        ("{}\n" + '{"a":' * 100_000, "row 1 of {path} is not JSON (maximum recursion depth exceeded"),
    ],
)
def test_a_broken_row_is_refused_by_its_number(tmp_path: Path, text: str | bytes, message: str) -> None:
    rows = JsonRows(write(tmp_path, text))
    with pytest.raises(DataError) as caught:
        rows[1]
    assert str(caught.value).startswith(message.replace("{path}", f"{tmp_path}/rows.json"))


def test_a_row_without_an_end_is_given_up_after_the_longest_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 100)
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    with pytest.raises(DataError, match="Unterminated string"):
        JsonRows(write(tmp_path, '[{"a": "' + "x" * 5000 + '"}]'))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data file .*none.json cannot be read \\(No such file or directory\\): check"):
        JsonRows(tmp_path / "none.json")


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    rows = [{"id": number, "text": "x" * 5000} for number in range(4000)]
    path = write(tmp_path, json.dumps(rows))  # 20 MB
    tracemalloc.start()
    try:
        found = JsonRows(path)
        assert found[3999]["id"] == 3999
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6 * 2**20 < path.stat().st_size / 3

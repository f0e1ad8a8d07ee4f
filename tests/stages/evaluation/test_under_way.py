"""What an evaluation has so far: kept on disk through kills, cut at whole batches, and never another's."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from betakd_stages.errors import ConfigError
from betakd_stages.evaluation import answers
from betakd_stages.evaluation.answers import UnderWay
from betakd_stages.evaluation.draws import Draw
from betakd_stages.evaluation.generation import Answer

WHOSE = {"benchmark": "digits", "seed": 1}
ANSWERS = [Answer(f"an answer, \u00e9 {index}", index / 10, (index, 7)) for index in range(7)]


def written(path: Path) -> bytes:
    """The content of a file of two whole batches of three answers and one more."""
    with UnderWay(path, Answer, WHOSE, 3) as under_way:
        for start in (0, 3, 6):
            under_way.append(ANSWERS[start : start + 3])
    return path.read_bytes()


def test_whole_batches_are_read_back_and_gone_on_with(tmp_path: Path) -> None:
    whole = written(tmp_path / "rows.jsonl")
    with UnderWay(tmp_path / "rows.jsonl", Answer, WHOSE, 3) as under_way:
        assert [asdict(row) | {"token_ids": tuple(row.token_ids)} for row in under_way.rows] == [
            asdict(answer) for answer in ANSWERS[:6]
        ]
        under_way.append(ANSWERS[6:])
    assert (tmp_path / "rows.jsonl").read_bytes() == whole


def test_a_kill_while_it_is_opened_costs_no_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    lines = written(path).splitlines(keepends=True)
    inode = path.stat().st_ino

    def killed(row: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(answers.json, "dumps", killed)
    with contextlib.suppress(KeyboardInterrupt), UnderWay(path, Answer, WHOSE, 3):
        pass
    assert path.read_bytes() == b"".join(lines[:7])
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_line_that_was_cut_off_is_taken_away_before_the_next_is_written(tmp_path: Path, cut: int) -> None:
    """Also one that lacks its end alone, behind which the next would stand in the same line."""
    path, draws = tmp_path / "rows.jsonl", [Draw([0.5, 0.25], {"accuracy": float(index)}) for index in range(3)]
    with UnderWay(path, Draw, WHOSE, 1) as under_way:
        under_way.append(draws)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with UnderWay(path, Draw, WHOSE, 1) as under_way:
        assert under_way.rows == draws[:2]
        under_way.append(draws[2:])
    assert path.read_bytes() == whole
    path.write_bytes(json.dumps(WHOSE).encode())  # killed within the first line
    with UnderWay(path, Draw, WHOSE, 1) as under_way:
        under_way.append(draws)
    assert path.read_bytes() == whole


def test_rows_of_another_evaluation_are_refused_and_stay(tmp_path: Path) -> None:
    whole = written(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match="holds scores of another evaluation: seed is 1 there and 2 here"):
        UnderWay(tmp_path / "rows.jsonl", Answer, {**WHOSE, "seed": 2}, 3)
    assert (tmp_path / "rows.jsonl").read_bytes() == whole

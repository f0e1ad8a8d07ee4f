"""The live table: what is under way, what ended, and how long the rest takes."""

import time
from pathlib import Path

import pytest
from rich.console import Console
from tests.pipeline.ablation.test_ablate import FIXED_1, make_spec

from betakd_pipe.ablation.execution import Failure
from betakd_pipe.ablation.live import LineDisplay, LiveTable
from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.spec import PlannedRun, plan_run


def planned(folder: Path, method: str) -> PlannedRun:
    spec = make_spec(folder, methods=dict.fromkeys(("good", "bad", "slow"), FIXED_1))
    return plan_run(spec, folder / "out", method, 0)


def test_the_table_shows_runs_under_way_ended_and_failed_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    with (tmp_path / "shown.txt").open("w", encoding="utf-8") as file:
        console = Console(width=100, height=30, record=True, file=file)
        table = LiveTable(console)
        table.start("ablation", total=5, done=1)
        good, bad, slow = (planned(tmp_path, method) for method in ("good", "bad", "slow"))
        table.began(good)
        table.began(bad)
        now_s[0] += 60
        table.ended(good, ResultRow("good", 0, 81.25, {}, None, 0.0, {}, 1.0, Path()))
        table.ended(bad, Failure("no memory"))
        table.advance()
        table.advance()
        table.began(slow)
        table.moved(slow, "student", 120, 280)
        now_s[0] += 20
        table.finish()
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "3 of 5 runs done, about 80 s left" in lines  # two ended in 80 s, two are left
    assert "good seed 0 done 81.2 60 s" in lines
    assert "bad seed 0 failed 60 s" in lines
    assert "slow seed 0 student 120/280 20 s" in lines


def test_where_there_is_no_terminal_a_line_names_the_run_that_ended_last(capsys: pytest.CaptureFixture[str]) -> None:
    display = LineDisplay(every_s=0.0)
    display.start("ablation", total=3, done=1)
    display.advance(run="fkl-task seed 0: 81.2 %")
    display.finish()
    assert capsys.readouterr().err.splitlines()[1].endswith("run=fkl-task seed 0: 81.2 %")

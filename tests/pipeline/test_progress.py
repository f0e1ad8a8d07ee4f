"""What is shown while something runs."""

import io

import pytest
from rich.console import Console

from betakd_pipe.progress import BarProgress, LineProgress, format_rate


def test_lines_tell_start_and_end_with_rate_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress(every_s=3600)
    progress.start("student", total=10, done=4)
    for _ in range(6):
        progress.advance(loss=0.25, run="ce")
    progress.finish()
    captured = capsys.readouterr()
    assert captured.out == ""
    first, last = captured.err.splitlines()
    assert first == "student: 4/10"
    assert last.startswith("student: 10/10, ")
    assert last.endswith("/s, loss=0.25 run=ce")


def test_lines_between_tell_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress(every_s=0)
    progress.start("student", total=3)
    progress.advance()
    assert "s left" in capsys.readouterr().err


def test_an_activity_that_stops_early_shows_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    progress.start("student", total=10)
    progress.finish()
    progress.finish()
    assert capsys.readouterr().err.splitlines() == ["student: 0/10", "student: 0/10"]


def test_a_bar_shows_how_far_it_is_and_the_figures() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    progress = BarProgress(console)
    progress.start("student", total=10, done=4)
    progress.advance(2, loss=0.5)
    progress.finish()
    text = console.export_text()
    assert "student" in text
    assert "6/10" in text
    assert "loss=0.5" in text


def test_a_slow_rate_is_told_in_seconds_each() -> None:
    assert format_rate(12.34) == "12.3/s"
    assert format_rate(0.125) == "8.0 s each"
    assert format_rate(0.0) == ""

"""What a running ablation shows: a live table on a terminal, plain lines elsewhere; both on stderr."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from betakd_pipe.ablation.execution import Failure, SilentWatch
from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.progress import LineProgress

HEADER_LINES = 6
"""Lines of the table that are no runs."""


class LineDisplay(LineProgress, SilentWatch):
    """A plain line now and then, with the run that ended last and its score."""


@dataclass(slots=True)
class _Running:
    run: PlannedRun
    began_s: float
    what: str = "starting"
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class _Ended:
    run: PlannedRun
    seconds: float
    outcome: ResultRow | Failure


class LiveTable:
    """The runs under way and those that ended last, with their scores and the time that is left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._total = self._done = 0
        self._started_s = 0.0
        self._running: dict[Path, _Running] = {}
        self._ended: list[_Ended] = []

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Show the table of `total` runs, `done` of them already there."""
        self.finish()
        self._total, self._done, self._started_s = total, done, time.monotonic()
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2)
        self._live.start()

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        """Count runs that are done."""
        self._done += num_units

    def finish(self) -> None:
        """Leave the table as it stands."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def began(self, run: PlannedRun) -> None:
        self._running[run.folder] = _Running(run, time.monotonic())

    def moved(self, run: PlannedRun, what: str, done: int, total: int) -> None:
        running = self._running[run.folder]
        running.what, running.done, running.total = what, done, total

    def ended(self, run: PlannedRun, outcome: ResultRow | Failure) -> None:
        running = self._running.pop(run.folder)
        self._ended.append(_Ended(run, time.monotonic() - running.began_s, outcome))

    def _render(self) -> Table:
        """Called by the thread that draws, so it looks at copies."""
        running, ended = list(self._running.values()), list(self._ended)
        table = Table(box=box.SIMPLE, title=self._title(len(ended)), title_justify="left", padding=(0, 1, 0, 0))
        for heading in ("run", "state", "accuracy %", "time"):
            table.add_column(heading, no_wrap=True)
        num_shown = max(1, self._console.size.height - HEADER_LINES - len(running))
        for end in ended[-num_shown:]:
            failed = isinstance(end.outcome, Failure)
            score = "" if isinstance(end.outcome, Failure) else f"{end.outcome.accuracy:.1f}"
            table.add_row(end.run.name, "failed" if failed else "done", score, _duration(end.seconds))
        for run in running:
            state = f"{run.what} {run.done}/{run.total}" if run.total else run.what
            table.add_row(run.run.name, state, "", _duration(time.monotonic() - run.began_s))
        return table

    def _title(self, num_ended: int) -> str:
        title = f"{self._done} of {self._total} runs done"
        if num_ended == 0 or self._done >= self._total:
            return title
        left_s = (time.monotonic() - self._started_s) / num_ended * (self._total - self._done)
        return f"{title}, about {_duration(left_s)} left"


def terminal_display() -> LineDisplay | LiveTable:
    """What shows an ablation here: progress and watch in one."""
    return LiveTable(Console(stderr=True)) if sys.stderr.isatty() else LineDisplay()


def _duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""Progress on the terminal: a bar with rate and time left, or a plain line now and then where there is no terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from betakd_stages.progress import Progress

PLAIN_LINE_EVERY_S = 10.0


def terminal_progress() -> Progress:
    """A bar on a terminal, plain lines elsewhere; both on stderr, so that stdout holds results only."""
    return BarProgress(Console(stderr=True)) if sys.stderr.isatty() else LineProgress()


def format_rate(per_second: float) -> str:
    """`12.3/s`, or `8.1 s each` for what is slow; nothing where there is no rate yet."""
    if per_second <= 0:
        return ""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"


class _Rate(ProgressColumn):
    """Units per second of this session."""

    def render(self, task: Task) -> Text:
        return Text(format_rate(task.speed or 0.0), style="progress.data.speed")


class BarProgress:
    """One bar at a time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichProgress | None = None

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Show a bar for `total` units, `done` of them already there."""
        self.finish()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=self._console,
        )
        self._bar.add_task(description, total=total, completed=done, shown="")
        self._bar.start()

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        """Move the bar and show the figures beside it."""
        if self._bar is None:
            return
        task_id = self._bar.task_ids[0]
        self._bar.advance(task_id, num_units)
        if shown:
            self._bar.update(task_id, shown=_figures(shown))

    def finish(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress:
    """A line when an activity starts and ends, and every so many seconds between."""

    def __init__(self, every_s: float = PLAIN_LINE_EVERY_S) -> None:
        self._every_s = every_s
        self._description = ""
        self._total = self._before = self._done = 0
        self._started_s = self._printed_s = 0.0
        self._figures = ""

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Announce `total` units, `done` of them already there."""
        self.finish()
        self._description, self._total, self._before, self._done = description, total, done, done
        self._started_s = self._printed_s = time.monotonic()
        self._figures = ""
        print(f"{description}: {done}/{total}", file=sys.stderr, flush=True)

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        """Count the units; print a line if the last one is old enough."""
        self._done += num_units
        self._figures = _figures(shown) or self._figures
        if time.monotonic() - self._printed_s >= self._every_s and self._done < self._total:
            self._print()

    def finish(self) -> None:
        """Print the last line."""
        if self._description:
            self._print()
            self._description = ""

    def _print(self) -> None:
        now_s = time.monotonic()
        rate = (self._done - self._before) / max(now_s - self._started_s, 1e-9)
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate and self._done < self._total else ""
        line = f"{self._description}: {self._done}/{self._total}"
        print(", ".join(filter(None, [line, format_rate(rate), left, self._figures])), file=sys.stderr, flush=True)
        self._printed_s = now_s


def _figures(shown: dict[str, float | str]) -> str:
    texts = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in shown.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())

"""How far the tasks of one command are, each with a part of the work, shown as one."""

from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

from betakd_cache import CacheError
from betakd_pipe.cluster.ray_pool import REPORTING_EVERY_S, Board, Reporter
from betakd_stages.errors import UserError
from betakd_stages.progress import Progress

Result = TypeVar("Result")


def follow(tasks: Mapping[Future[Result], str], board: Board, shown: "Shown") -> dict[str, Result]:
    """What all tasks returned, by name; shows how far they are. Raises UserError, by name, for the first that fails."""
    pending = set(tasks)
    while pending:
        ended, pending = wait(pending, timeout=REPORTING_EVERY_S, return_when=FIRST_EXCEPTION)
        shown.update(board.values())
        for future in ended:
            error = future.exception()
            if isinstance(error, UserError | CacheError):
                raise UserError(f"{tasks[future]}: {error}") from None
            if error is not None:
                raise error
    return {name: future.result() for future, name in tasks.items()}


class PartProgress(Reporter):
    """The progress of a task, written on a board: how much was there when it began, and how much is there now."""

    before = 0
    _now = 0

    def start(self, description: str, total: int, done: int = 0) -> None:
        self.before = self._now = done
        self.report((self.before, self._now), now=True)

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self._now += num_units
        self.report((self.before, self._now))

    def finish(self) -> None:
        self.report((self.before, self._now), now=True)


class Shown:
    """What the terminal was told. Records from before this call raise the bar, not its rate, and a part that begins
    again after a loss counts nothing twice."""

    def __init__(self, progress: Progress, activity: str, total: int) -> None:
        self._progress, self._activity, self._total, self._done = progress, activity, total, 0
        self._before: dict[str, int] = {}
        self._now: dict[str, int] = {}
        progress.start(activity, total)

    def update(self, values: Mapping[str, tuple[int, int]]) -> None:
        """Show what the parts reported last: how much was there when each began, and how much is there now."""
        fresh = {name: before for name, (before, _) in values.items() if name not in self._now}
        self._before |= fresh
        self._now |= fresh
        if found := sum(fresh.values()):
            self._done += found
            self._progress.start(self._activity, self._total, self._done)
        now = {name: max(self._now[name], now) for name, (_, now) in values.items()}
        num_new = sum(now.values()) - sum(self._now[name] for name in now)
        self._now |= now
        self._done += num_new
        self._progress.advance(num_new)

    def num_new(self, done: Mapping[str, tuple[bool, int]]) -> int:
        """The records of this call, those of lost tasks included, from what each part has behind it at its end."""
        return sum(num_behind - self._before[name] for name, (_, num_behind) in done.items())

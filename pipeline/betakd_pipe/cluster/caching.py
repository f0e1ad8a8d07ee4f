"""Stage one as tasks on a Ray cluster, one for each part of the cache."""

from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING

from betakd_cache import CacheError
from betakd_pipe.cluster.ray_pool import REPORTING_EVERY_S, Board, Reporter, ray_pool
from betakd_stages.errors import UserError
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheTeacherSettings

if TYPE_CHECKING:
    from betakd_stages.caching.run import CacheSummary

ACTIVITY = "teacher"


def cache_teacher_on_ray(
    settings: CacheTeacherSettings,
    out: str,
    address: str,
    *,
    num_workers: int,
    part: tuple[int, int] = (0, 1),
    progress: Progress,
) -> "CacheSummary":
    """What `cache_teacher` does for a part, shared by `num_workers` tasks; the cluster runs as many at once as fit.

    Raises UserError with the message of the first task that fails; the others commit what they have and end, and the
    same call goes on from there. Each task may reject `settings.max_rejected` samples.
    """
    from betakd_cache.object_store import is_url
    from betakd_stages.caching.run import summary
    from betakd_stages.caching.workers import share
    from betakd_stages.data import load_samples

    num_samples = len(load_samples(settings.data)[: settings.limit][part[0] :: part[1]])
    default_gpus = 1 if settings.backend == "hf" else settings.vllm.tensor_parallel_size
    shared = None if is_url(out) else Path(out)
    with ray_pool(address, settings.ray, shared=shared, default_gpus=default_gpus) as pool:
        board = pool.board()
        shown = _Shown(progress, num_samples * len(settings.targets))
        try:
            tasks: dict[Future[tuple[bool, int]], str] = {}
            for number in range(num_workers):
                name = f"part {number + 1} of {num_workers}"
                own = share(part, number, num_workers)
                tasks[pool.submit(work_on_part, settings, out, own, PartProgress(board, name))] = name
            done = _follow(tasks, board, shown)
        finally:
            progress.finish()
    return summary(out, any(complete for complete, _ in done.values()), shown.num_new(done))


def work_on_part(
    settings: CacheTeacherSettings, out: str, part: tuple[int, int], progress: "PartProgress"
) -> tuple[bool, int]:
    """A task: whether the cache was complete when this part was, and how many samples the part has behind it."""
    from transformers.utils import logging

    from betakd_stages.caching.run import cache_teacher

    logging.disable_progress_bar()
    found = cache_teacher(settings, out, part=part, progress=progress)
    return found.is_complete, progress.before + found.num_new


def _follow(
    tasks: Mapping[Future[tuple[bool, int]], str], board: Board, shown: "_Shown"
) -> dict[str, tuple[bool, int]]:
    """What all tasks returned, by name. Raises UserError for the first that fails."""
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


class _Shown:
    """What the terminal was told. Records from before this call raise the bar, not its rate, and a part that begins
    again after a loss counts nothing twice."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._before: dict[str, int] = {}
        self._now: dict[str, int] = {}
        progress.start(ACTIVITY, total)

    def update(self, values: Mapping[str, tuple[int, int]]) -> None:
        """Show what the parts reported last: how much was there when each began, and how much is there now."""
        fresh = {name: before for name, (before, _) in values.items() if name not in self._now}
        self._before |= fresh
        self._now |= fresh
        if found := sum(fresh.values()):
            self._done += found
            self._progress.start(ACTIVITY, self._total, self._done)
        now = {name: max(self._now[name], now) for name, (_, now) in values.items()}
        num_new = sum(now.values()) - sum(self._now[name] for name in now)
        self._now |= now
        self._done += num_new
        self._progress.advance(num_new)

    def num_new(self, done: Mapping[str, tuple[bool, int]]) -> int:
        """The records of this call, those of lost tasks included, from what each part has behind it at its end."""
        return sum(num_behind - self._before[name] for name, (_, num_behind) in done.items())

"""Runs of an ablation as tasks on a Ray cluster, each in a process of its own."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from betakd_cache import CacheError
from betakd_pipe.ablation.execution import Execution, Failure, Watch
from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.ablation.workers import LoadStages, describe, execute
from betakd_pipe.cluster.ray_pool import REPORTING_EVERY_S, Board, RayPool, Reporter, ray_pool
from betakd_stages.errors import UserError
from betakd_stages.settings import RaySettings

logger = getLogger(__name__)


@contextmanager
def ray_slots(
    address: str, settings: RaySettings, out: Path, load_stages: LoadStages, how: Execution
) -> Iterator["RaySlots"]:
    """What `Slots` is on one machine: as many runs at a time as fit into the cluster.

    Ray tries a run again whose worker or node was lost, `settings.max_retries` times; one that ended by a bug is tried
    again as `how` says.
    """
    with ray_pool(address, settings, shared=out) as pool:
        yield RaySlots(pool, load_stages, how.retries)


@dataclass(frozen=True, slots=True)
class _Attempt:
    run: PlannedRun
    retries: int


class RaySlots:
    """Made by `ray_slots`."""

    def __init__(self, pool: RayPool, load_stages: LoadStages, retries: int) -> None:
        self._pool, self._load_stages, self._retries = pool, load_stages, retries
        self._board = pool.board()

    def execute(self, runs: Sequence[PlannedRun], watch: Watch) -> None:
        """Execute the runs and call `watch.ended` once for each, whatever became of it."""
        told: dict[str, tuple[str, int, int]] = {}
        pending = {self._submit(run): _Attempt(run, self._retries) for run in runs}
        while pending:
            ended, _ = wait(pending, timeout=REPORTING_EVERY_S, return_when=FIRST_COMPLETED)
            self._tell([attempt.run for attempt in pending.values()], told, watch)
            for future in ended:
                attempt = pending.pop(future)
                error = future.exception()
                if error is None:
                    watch.ended(attempt.run, future.result())
                elif not isinstance(error, Exception):
                    raise error
                elif isinstance(error, UserError | CacheError) or attempt.retries == 0:
                    watch.ended(attempt.run, Failure(describe(error)))
                else:
                    logger.warning("%s failed and will be tried again: %s", attempt.run.name, describe(error))
                    pending[self._submit(attempt.run)] = _Attempt(attempt.run, attempt.retries - 1)

    def _submit(self, run: PlannedRun) -> "Future[ResultRow]":
        return self._pool.submit(work_on_run, run, self._load_stages, self._board)

    def _tell(self, runs: Sequence[PlannedRun], told: dict[str, tuple[str, int, int]], watch: Watch) -> None:
        """Pass on what is new on the board."""
        values = self._board.values()
        for run in runs:
            name = str(run.folder)
            if name not in values or values[name] == told.get(name):
                continue
            if name not in told:
                watch.began(run)
            told[name] = values[name]
            watch.moved(run, *values[name])


def work_on_run(run: PlannedRun, load_stages: LoadStages, board: Board) -> ResultRow:
    """A task: the row of a run, which goes on where it was interrupted."""
    return execute(run, load_stages(), RunProgress(board, str(run.folder)))


class RunProgress(Reporter):
    """The progress of a run, written on a board: what it does, how much of it is done, and of how much."""

    _what, _done, _total = "", 0, 0

    def start(self, description: str, total: int, done: int = 0) -> None:
        self._what, self._done, self._total = description, done, total
        self.report((description, done, total), now=True)

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self._done += num_units
        self.report((self._what, self._done, self._total))

    def finish(self) -> None:
        pass

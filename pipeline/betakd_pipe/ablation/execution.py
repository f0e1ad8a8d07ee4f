"""Runs on slots: one worker process for each GPU, or for each share of the cores. A run fails alone and is retried."""

import logging
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn, Protocol

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.ablation.workers import GPUS, LoadStages, Worker
from betakd_stages.errors import Interrupted

DIED = "its worker process died, perhaps for want of memory: --jobs 1 needs least"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run did not end."""

    reason: str


class Watch(Protocol):
    """Is told what happens to each run."""

    def began(self, run: PlannedRun) -> None:
        """A worker has the run."""

    def moved(self, run: PlannedRun, what: str, done: int, total: int) -> None:
        """The run did `done` of `total` units of `what`, such as steps of the student."""

    def ended(self, run: PlannedRun, outcome: ResultRow | Failure) -> None:
        """The run will not be tried again."""


class SilentWatch:
    """A watch that shows nothing."""

    def began(self, run: PlannedRun) -> None:
        pass

    def moved(self, run: PlannedRun, what: str, done: int, total: int) -> None:
        pass

    def ended(self, run: PlannedRun, outcome: ResultRow | Failure) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Execution:
    """How runs are executed."""

    jobs: int | None = None
    """Runs at a time; default: the GPUs, or the cores where there is none."""
    retries: int = 1
    """How often a run is tried again whose worker died or which ended by a bug; a user's error would come again."""
    own_processes: bool = False
    """No run after another in one process."""


def num_slots(jobs: int | None, gpus: Sequence[str]) -> int:
    """How many runs there are at a time: as many as asked for, one per GPU, or one per core where there is no GPU."""
    return jobs or len(gpus) or os.cpu_count() or 1


def _share(num_slots: int) -> int:
    """The cores of each."""
    return max(1, (os.cpu_count() or 1) // num_slots)


class Executor(Protocol):
    """What executes runs: `Slots` on this machine, or tasks on a cluster."""

    def execute(self, runs: Sequence[PlannedRun], watch: Watch) -> None:
        """Execute the runs and call `watch.ended` once for each, whatever became of it."""


OpenExecutor = Callable[[LoadStages, Execution], AbstractContextManager[Executor]]


@dataclass(frozen=True, slots=True)
class _Attempt:
    run: PlannedRun
    retries: int


class Slots:
    """Workers that stay for all runs of a command, begun when the first run needs one. To be used with `with`."""

    def __init__(self, load_stages: LoadStages, how: Execution) -> None:
        self._load_stages = load_stages
        self._how = how
        self._gpus: list[str | None] = []
        self._num_threads = 1
        self._workers: list[Worker | None] = []

    def __enter__(self) -> "Slots":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        workers = [worker for worker in self._workers if worker is not None]
        try:
            for worker in workers if kind is not None else ():
                worker.stop()
            for worker in workers:
                worker.join()
        except BaseException:  # a second Ctrl-C
            for worker in workers:
                worker.kill()
            raise

    def execute(self, runs: Sequence[PlannedRun], watch: Watch) -> None:
        """Execute the runs and call `watch.ended` once for each, whatever became of it."""
        waiting = deque(_Attempt(run, self._how.retries) for run in runs)
        busy: dict[Connection, tuple[int, _Attempt]] = {}
        while waiting or busy:
            taken = {number for number, _ in busy.values()}
            for number in range(self._slots_there_are()):
                if waiting and number not in taken:
                    attempt = waiting.popleft()
                    busy[self._begin(number, attempt.run)] = (number, attempt)
                    watch.began(attempt.run)
            for connection in multiprocessing.connection.wait(list(busy)):
                assert isinstance(connection, Connection)
                number, attempt = busy[connection]
                again = self._follow(number, attempt, watch)
                if again is None:
                    continue
                del busy[connection]
                waiting.extend(again)

    def _slots_there_are(self) -> int:
        """How many runs there may be at a time; found out when the first is to begin."""
        if not self._workers:
            self._find_slots()
        return len(self._workers)

    def _find_slots(self) -> None:
        """Where there is no GPU, the worker that looked for one is the first slot's."""
        scout = Worker(self._load_stages, _share(num_slots(self._how.jobs, [])))
        self._workers = [scout]
        scout.send(GPUS)
        try:
            _, gpus = scout.receive()
        except EOFError:
            raise RuntimeError(f"a worker ended with exit code {self._dismiss(0)}, its traceback is above") from None
        if gpus:
            self._dismiss(0)
        count = num_slots(self._how.jobs, gpus)
        self._num_threads = _share(count)
        self._gpus = [gpus[number % len(gpus)] if gpus else None for number in range(count)]
        self._workers += [None] * (count - 1)

    def _begin(self, number: int, run: PlannedRun) -> Connection:
        worker = self._workers[number]
        if worker is None or not worker.is_alive:
            worker = self._workers[number] = Worker(self._load_stages, self._num_threads, self._gpus[number])
        worker.send(run)
        return worker.connection

    def _follow(self, number: int, attempt: _Attempt, watch: Watch) -> list[_Attempt] | None:
        """Take one message of a busy worker: None while it is at work, else what is to be tried again."""
        worker = self._workers[number]
        assert worker is not None
        try:
            kind, *values = worker.receive()
        except EOFError:
            kind, values = "failed", [f"{DIED} (exit code {self._dismiss(number)})", False]
        if kind == "moved":
            watch.moved(attempt.run, *values)
            return None
        if kind == "warned":
            logger.warning("%s: %s", attempt.run.name, values[0])
            return None
        is_users = kind == "done" or values[1]
        if self._how.own_processes or not is_users:
            self._dismiss(number)
        if kind == "done":
            watch.ended(attempt.run, values[0])
            return []
        if is_users or attempt.retries == 0:
            watch.ended(attempt.run, Failure(values[0]))
            return []
        logger.warning("%s failed and will be tried again: %s", attempt.run.name, values[0])
        return [_Attempt(attempt.run, attempt.retries - 1)]

    def _dismiss(self, number: int) -> int | None:
        """The exit code of the worker of a slot, which gets a new one for its next run."""
        worker, self._workers[number] = self._workers[number], None
        return worker.join() if worker is not None else None


@contextmanager
def stopped_by_sigterm(where: Callable[[], str]) -> Iterator[None]:
    """SIGTERM raises Interrupted in the enclosed lines, where nobody else handles it: Ctrl-C raises anyway."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what cleans up is not interrupted
        raise Interrupted(signal.SIGTERM, where())

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

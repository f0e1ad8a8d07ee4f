"""Worker processes for many runs: each imports torch once, keeps to its share of the cores and dies with its parent.

A worker does one run at a time and says over its connection how far it is: `("moved", what, done, total)`,
`("warned", text)`, and at the end `("done", row)` or `("failed", reason, is_users)`, the user's being errors that would
come again.
"""

import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from betakd_cache import CacheError
from betakd_pipe.ablation.rows import EVALUATION, ResultRow, result_row, write_row
from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.stage_runs import Stages, distill, evaluate
from betakd_stages.errors import Interrupted, UserError
from betakd_stages.progress import Progress, SilentProgress

LoadStages = Callable[[], Stages]

GPUS = "gpus"
"""The task of saying, as `("gpus", names)`, which GPUs there are."""
END = "end"
"""The task of ending."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
MOVED_EVERY_S = 0.5
"""How often a worker says how far it is."""
STOPPING_S = 60.0
"""What a worker that is told to stop may take for the step under way and its checkpoint."""


class Worker:
    """A process that does one run at a time, on one GPU where it is given one."""

    def __init__(self, load_stages: LoadStages, num_threads: int, gpu: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")  # torch does not survive fork
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, load_stages, num_threads, gpu))
        self._process.start()
        theirs.close()  # so that the end of the process is the end of its messages

    @property
    def is_alive(self) -> bool:
        """Whether the process could do a run."""
        return self._process.is_alive()

    def send(self, task: PlannedRun | str) -> None:
        """Begin a run, or one of the tasks GPUS and END."""
        self.connection.send(task)

    def receive(self) -> tuple[Any, ...]:
        """The next message. Raises EOFError where the process is dead."""
        message: tuple[Any, ...] = self.connection.recv()
        return message

    def stop(self) -> None:
        """Ask the process to end; a run that trains ends its step first and leaves a checkpoint."""
        self._process.terminate()

    def join(self) -> int | None:
        """The exit code of the process, which ends when its run has ended; one that takes too long is killed."""
        if self.is_alive:
            with suppress(BrokenPipeError):  # it ended meanwhile
                self.send(END)
        self._process.join(STOPPING_S)
        if self.is_alive:
            self.kill()
        self.connection.close()
        return self._process.exitcode

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for other work than runs, which share the cores evenly; ended at once if the enclosed lines are left
    by an exception."""
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, start_worker, (num_threads,))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def start_worker(num_threads: int) -> None:
    """To be called first in a process of a pool."""
    _keep_to_share(num_threads)
    # At once: work that were left to stop after a checkpoint would leave the worker to begin the next piece.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))


def execute(run: PlannedRun, stages: Stages, progress: Progress) -> ResultRow:
    """Distil and evaluate, each resumed if it was interrupted; the row is in the run folder afterwards."""
    start_s = time.monotonic()
    summary = distill(run.settings, run.folder, progress=progress, stages=stages)
    scores = evaluate(run.evaluation, run.folder / EVALUATION, progress=progress, stages=stages)
    row = result_row(run, scores, summary.final_metrics, time.monotonic() - start_s)
    write_row(run, row)
    return row


def describe(error: Exception) -> str:
    """One line on an error: its message if the user can mend it, with its type if it is a bug."""
    message = " ".join(str(error).split())
    return message if isinstance(error, UserError | CacheError) else f"{type(error).__name__}: {message} (see log.txt)"


class _Line:
    """The line to the parent, for several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(message)


class _Reporter(SilentProgress):
    """The progress of a run, sent to the parent now and then."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._what, self._done, self._total, self._sent_s = "", 0, 0, 0.0

    def start(self, description: str, total: int, done: int = 0) -> None:
        self._what, self._done, self._total = description, done, total
        self._send()

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self._done += num_units
        if time.monotonic() - self._sent_s >= MOVED_EVERY_S:
            self._send()

    def _send(self) -> None:
        self._line.send("moved", self._what, self._done, self._total)
        self._sent_s = time.monotonic()


class _Warnings(logging.Handler):
    """Sends warnings to the parent, which knows of what run they are."""

    def __init__(self, line: _Line) -> None:
        super().__init__(logging.WARNING)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.send("warned", record.getMessage())


def _work(connection: Connection, load_stages: LoadStages, num_threads: int, gpu: str | None) -> None:
    """The life of a worker: one task after the other.

    It ends after a run that a bug or a signal ended: what those leave behind in a process is not known.
    """
    _keep_to_share(num_threads)
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    line = _Line(connection)
    logging.getLogger().addHandler(_Warnings(line))
    while (task := connection.recv()) != END:
        if task == GPUS:
            line.send("gpus", load_stages().visible_gpus())
        elif not _do(task, load_stages, line):
            return


def _do(run: PlannedRun, load_stages: LoadStages, line: _Line) -> bool:
    """Whether the process is good for another run after this one."""
    try:
        row = execute(run, load_stages(), _Reporter(line))
    except Interrupted as error:
        line.send("failed", describe(error), False)
        return False
    except (UserError, CacheError) as error:
        line.send("failed", describe(error), True)
    except Exception as error:  # the outermost edge of a run: whatever ends it is told in one line
        line.send("failed", describe(error), False)
        return False
    else:
        line.send("done", row)
    gc.collect()  # a trainer is a knot of references that holds a student
    return True


def _keep_to_share(num_threads: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))  # read by torch when a run first imports it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

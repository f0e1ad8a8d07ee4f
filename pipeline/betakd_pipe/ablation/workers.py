"""Worker processes for many runs: each imports torch once, keeps to its share of the cores and dies with its parent."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from betakd_cache import CacheError
from betakd_pipe.ablation.rows import EVALUATION, ResultRow, result_row, write_row
from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.stage_runs import Stages, distill, evaluate
from betakd_stages.errors import UserError
from betakd_stages.progress import SilentProgress

LoadStages = Callable[[], Stages]


class WorkerError(UserError):
    """A worker process died."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run did not end."""

    reason: str


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that share the cores evenly; ended at once if the enclosed lines are left by an exception."""
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    context = multiprocessing.get_context("spawn")  # torch does not survive fork
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (num_threads,))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def execute_all(
    pool: ProcessPoolExecutor,
    runs: Sequence[PlannedRun],
    load_stages: LoadStages,
    finished: Callable[[PlannedRun, ResultRow | Failure], None],
) -> None:
    """Execute the runs in the workers and call `finished` after each.

    A run that fails does not stop the others. Raises WorkerError where a worker process was killed.
    """
    try:
        futures = {pool.submit(execute, run, load_stages): run for run in runs}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            finished(futures[future], future.result() if error is None else Failure(describe(error)))
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process was killed, perhaps for want of memory: the same command again goes on; "
            "--jobs 1 needs least memory"
        ) from None


def execute(run: PlannedRun, load_stages: LoadStages) -> ResultRow:
    """Distil and evaluate, each resumed if it was interrupted; the row is in the run folder afterwards."""
    stages = load_stages()
    summary = distill(run.settings, run.folder, progress=SilentProgress(), stages=stages)
    scores = evaluate(run.evaluation, run.folder / EVALUATION, progress=SilentProgress(), stages=stages)
    row = result_row(run, scores, summary.final_metrics)
    write_row(run, row)
    return row


def describe(error: BaseException) -> str:
    """One line on an error: its message if the user can mend it, with its type if it is a bug."""
    message = " ".join(str(error).split())
    return message if isinstance(error, UserError | CacheError) else f"{type(error).__name__}: {message} (see log.txt)"


def _start_worker(num_threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read by torch when a run first imports it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    # At once: a run that were left to stop after a checkpoint would leave the worker to begin the next run.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

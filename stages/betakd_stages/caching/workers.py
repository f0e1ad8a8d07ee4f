"""Several processes of stage one under one call: each has its own part of the cache, and its own GPU where it can."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from transformers.utils import logging as transformers_logging

from betakd_cache import CacheError
from betakd_stages.caching.run import CacheSummary, cache_teacher, summary
from betakd_stages.errors import ConfigError, UserError
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheTeacherSettings

VISIBLE = "CUDA_VISIBLE_DEVICES"
STOPPING_S = 60.0
"""What a worker that is told to stop may take for its last shard."""


class WorkerError(UserError):
    """A worker process failed."""


def cache_teacher_in_workers(
    settings: CacheTeacherSettings,
    out: Path | str,
    *,
    num_workers: int,
    part: tuple[int, int] = (0, 1),
    progress: Progress,
) -> CacheSummary:
    """What `cache_teacher` does for a part, shared by so many processes.

    Raises WorkerError with the message of the first worker that fails; the others commit what they have and end, and
    the same call goes on from there. Each worker may reject `settings.max_rejected` samples.
    """
    if num_workers > 1 and settings.device_map == "auto":
        raise ConfigError(
            f"device_map auto spreads one teacher over all GPUs, {num_workers} workers have one teacher each: leave "
            "one of the two out"
        )
    num_gpus, wanted = len(visible_gpus()), num_workers * settings.vllm.tensor_parallel_size
    if settings.backend != "hf" and 0 < num_gpus < wanted:
        raise ConfigError(
            f"{num_workers} engines of vLLM with vllm.tensor_parallel_size {settings.vllm.tensor_parallel_size} take "
            f"{wanted} GPUs, {num_gpus} are visible: start fewer workers"
        )
    context = multiprocessing.get_context("spawn")  # torch does not survive fork
    processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for number in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            name = f"worker {number + 1} of {num_workers}"
            process = context.Process(target=_work, args=(sender, settings, out, part, number, num_workers), name=name)
            process.start()
            sender.close()  # so that the end of the process is the end of its messages
            processes[receiver] = process
        done = follow(processes, progress)
    finally:
        _stop(list(processes.values()))
        progress.finish()
    return summary(out, any(complete for complete, _ in done), sum(num_new for _, num_new in done))


def share(part: tuple[int, int], number: int, num_workers: int) -> tuple[int, int]:
    """The part that one of the workers on a part writes; all of theirs together are that part, as samples are dealt."""
    return part[0] + part[1] * number, part[1] * num_workers


def follow(
    processes: Mapping[Connection, multiprocessing.process.BaseProcess], progress: Progress
) -> list[tuple[bool, int]]:
    """Whether the cache was complete, and the number of new records, at the end of each worker.

    Raises WorkerError for one that fails or is killed, RuntimeError for one that dies of a bug.
    """
    running = dict(processes)
    ended: list[tuple[bool, int]] = []
    started: list[tuple[int, int]] = []
    num_early = 0  # progress of workers before the last one has said how much it has to do
    while running:
        for connection in multiprocessing.connection.wait(list(running)):
            assert isinstance(connection, Connection)
            process = running[connection]
            try:
                kind, *values = connection.recv()
            except EOFError:
                _raise_dead(process)
            if kind == "start":
                started.append((values[0], values[1]))
                if len(started) == len(processes):
                    progress.start("teacher", sum(total for total, _ in started), sum(done for _, done in started))
                    progress.advance(num_early)
            elif kind == "advance" and len(started) < len(processes):
                num_early += values[0]
            elif kind == "advance":
                progress.advance(values[0])
            elif kind == "warning":
                logging.getLogger(__name__).warning(values[0])
            elif kind == "failed":
                raise WorkerError(f"{process.name}: {values[0]}")
            else:
                ended.append((values[0], values[1]))
                del running[connection]
    return ended


def _raise_dead(process: multiprocessing.process.BaseProcess) -> NoReturn:
    """Raises WorkerError for a worker that was killed, RuntimeError for one that died of a bug."""
    process.join()
    if process.exitcode is not None and process.exitcode < 0:
        raise WorkerError(
            f"{process.name} was killed (signal {-process.exitcode}), perhaps for want of memory: the same command "
            "again goes on; fewer workers need less"
        )
    raise RuntimeError(f"{process.name} ended with exit code {process.exitcode}, its traceback is above")


def _stop(processes: list[multiprocessing.process.BaseProcess]) -> None:
    """Tell those that still run to commit what they have and end, and wait for them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(STOPPING_S)
        if process.is_alive():
            process.kill()
            process.join()


def _work(
    connection: Connection,
    settings: CacheTeacherSettings,
    out: Path | str,
    part: tuple[int, int],
    number: int,
    num_workers: int,
) -> None:
    """The life of a worker: it ends by itself, when it is told to, or with its parent."""
    messages = _Messages(connection)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops its workers
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger().addHandler(_Forwarding(messages))
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))
    if settings.backend != "hf":
        if gpus := visible_gpus():
            os.environ[VISIBLE] = ",".join(gpus_of_engine(gpus, settings.vllm.tensor_parallel_size, number))
    elif torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        found = cache_teacher(settings, out, part=share(part, number, num_workers), progress=messages)
    except (UserError, CacheError) as error:
        messages.send("failed", str(error))
    except KeyboardInterrupt:
        return
    else:
        messages.send("done", found.is_complete, found.num_new)


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no GPU."""
    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE, "")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def gpus_of_engine(gpus: Sequence[str], size: int, number: int) -> Sequence[str]:
    """Those of the engine of a worker, which takes `size` of them."""
    return gpus[number * size : (number + 1) * size]


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Raises KeyboardInterrupt, once: what cleans up after it is not interrupted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


class _Messages:
    """A worker's line to its parent, which is its `Progress` too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        """Raises KeyboardInterrupt where nobody listens any more."""
        try:
            with self._lock:
                self._connection.send(message)
        except BrokenPipeError:
            raise KeyboardInterrupt from None

    def start(self, description: str, total: int, done: int = 0) -> None:
        self.send("start", total, done)

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self.send("advance", num_units)

    def finish(self) -> None:
        pass


class _Forwarding(logging.Handler):
    """Sends warnings to the parent, who prints them as its own."""

    def __init__(self, messages: _Messages) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.send("warning", record.getMessage())

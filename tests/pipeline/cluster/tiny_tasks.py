"""Tasks for a cluster that take no time to speak of, in a module that its workers can import."""

import os
import signal
import time
from pathlib import Path

from betakd_stages.errors import DataError


def note_and_wait(folder: Path, number: int) -> int:
    """A task of a second that leaves a file for every time it is begun, named by the daemon of its node."""
    (folder / f"{number}-{os.getppid()}-{time.time_ns()}").touch()
    time.sleep(1)
    return number * number


def fail(message: str) -> None:
    raise DataError(message)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_to_be_interrupted(folder: Path, number: int) -> None:
    """A task that says what it keeps when it is interrupted."""
    (folder / f"begun-{number}").touch()
    try:
        for _ in range(1200):  # an interruption waits for the end of a sleep, as it does for that of a batch
            time.sleep(0.1)
    finally:
        (folder / f"kept-{number}").touch()

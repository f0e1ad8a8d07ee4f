"""Commands to be killed, started quickly.

Starting Python and importing torch take seconds in which nothing happens. One process does so once and forks for every
run: what gets a signal is a process of its own that runs the whole command, from its arguments to its end.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AT_WORK_S = 120.0

SCRIPT = """
import json, os, sys
import betakd_stages.caching.run, betakd_stages.models.tiny, betakd_stages.distillation.run
from betakd_pipe.cli import main
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Launcher:
    """Runs one command after another, each in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, command: list[str]) -> int:
        """The process id of a run with these arguments."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def status(self) -> int:
        """The wait status of the run, once it has ended."""
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def running_launcher() -> Iterator[Launcher]:
    """A launcher that ends with the enclosed lines."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Launcher(process)
        assert process.stdin is not None
        process.stdin.close()


def kill_at_work(launcher: Launcher, command: list[str], journal: Path, delay_s: float) -> bool:
    """Whether the kill, `delay_s` after the run first changed the journal, hit a run that was still at work."""
    before = journal.stat().st_size if journal.exists() else -1
    child = Path(f"/proc/{launcher.start(command)}")
    deadline_s = time.monotonic() + AT_WORK_S
    while child.exists() and (journal.stat().st_size if journal.exists() else -1) == before:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    time.sleep(delay_s)
    if child.exists():
        subprocess.run(["kill", "-KILL", child.name], check=False, stderr=subprocess.DEVNULL)
    status = launcher.status()
    assert status in (0, signal.SIGKILL), "the command failed by itself"
    return status == signal.SIGKILL

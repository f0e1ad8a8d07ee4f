"""Commands to be killed, started quickly.

Starting Python and importing torch take seconds in which nothing happens. One process does so once and forks for every
run: what gets a signal is a process of its own that runs the whole command, from its arguments to its end.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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

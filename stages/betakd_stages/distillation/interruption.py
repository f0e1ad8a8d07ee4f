"""SIGTERM and Ctrl-C while a student trains: the step under way ends first, and a checkpoint holds it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from betakd_stages.errors import UserError

NUMBER_BASE = 128
"""A process that a signal ended has this plus the signal's number as its exit code, in every shell."""


class Interrupted(UserError):
    """A command was stopped by a signal, and can go on; `where` says how far it came."""

    def __init__(self, by: signal.Signals, where: str) -> None:
        super().__init__(f"stopped by {by.name} {where}; the same command again goes on from there")
        self.exit_code = NUMBER_BASE + by


class StopRequest:
    """The signal that asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """What SIGTERM or Ctrl-C fill in while the enclosed lines run, instead of ending the process at once.

    A second Ctrl-C does end it. A signal that somebody else handles or ignores stays theirs, and so do all of them
    outside the main thread, the only one that may handle signals. The handlers are as before afterwards.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = request.signal or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever does not want to wait asks twice

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number, handler in before.items() if handler is defaults[number]]
    try:
        for number in taken:
            signal.signal(number, note)
        yield request
    finally:
        for number in taken:
            signal.signal(number, before[number])

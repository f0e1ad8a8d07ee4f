"""SIGTERM and Ctrl-C while a student trains: the step under way ends first, and a checkpoint holds it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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

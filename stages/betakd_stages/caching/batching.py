"""From samples to batches of similar length, with images read and texts tokenised ahead of the teacher, in threads."""

import collections
import queue
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from betakd_stages.data.sample import Sample
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.errors import DataError

WINDOWS_AHEAD = 1
"""How many windows are prepared or being prepared while another one is scored."""


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample and what a model eats of it, or None and the reason why it cannot be had."""

    sample: Sample
    encoded: EncodedSample | None
    reason: str = ""


def prepared_windows(
    samples: Sequence[Sample], encoders: Sequence[Encoder], window_samples: int
) -> Generator[list[PreparedSample], None, None]:
    """The samples in their order, so many at a time, encoded by one thread per encoder and one window ahead.

    Tokenizers are not safe in several threads, so each of the `encoders` serves one at a time. What an encoder raises
    other than DataError is raised here. Close the iterator (contextlib.closing) to end the threads early.
    """
    free: queue.SimpleQueue[Encoder] = queue.SimpleQueue()
    for encoder in encoders:
        free.put(encoder)

    def prepare(sample: Sample) -> PreparedSample:
        encoder = free.get()
        try:
            return PreparedSample(sample, encoder.encode(sample))
        except DataError as error:
            return PreparedSample(sample, None, str(error))
        finally:
            free.put(encoder)

    ahead: collections.deque[list[Future[PreparedSample]]] = collections.deque()
    threads = ThreadPoolExecutor(len(encoders), thread_name_prefix="prepare")
    with warnings.catch_warnings():
        # Filters are the process's, so those that each decoding sets and takes back would mix between threads.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            for start in range(0, len(samples), window_samples):
                ahead.append([threads.submit(prepare, sample) for sample in samples[start : start + window_samples]])
                if len(ahead) > WINDOWS_AHEAD:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            threads.shutdown(cancel_futures=True)


def length_buckets(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The positions of `lengths`, the longest first, in batches: what is of one length goes together.

    The longest come first so that memory runs short at once or never.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

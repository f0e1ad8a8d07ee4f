"""Numbers to bytes and back: companded gaps and ids in two planes.

A gap matters in proportion to its probability exp(-gap), so its code is fine near 0 and coarse far away:
code = round(levels (1 - exp(-gap / 3)) / (1 - exp(-24 / 3))); gaps beyond 24 nats are stored as 24.
With 255 levels the step is 0.012 nats at gap 0 and 0.33 at gap 10; the first ranks take 65,535 levels, steps of
0.00005 and 0.0013.
"""

import functools

import numpy as np
from numpy.typing import NDArray

GAP_SCALE = 3.0
GAP_LIMIT = 24.0
_SPAN = 1.0 - np.exp(-GAP_LIMIT / GAP_SCALE)


def encode_gaps(gaps: NDArray[np.float32], dtype: np.dtype) -> NDArray[np.unsignedinteger]:
    """The codes `[...]` of gaps in nats; `dtype` is u8 or u16."""
    levels = np.float32(np.iinfo(dtype).max / _SPAN)
    limited = np.minimum(gaps, np.float32(GAP_LIMIT))
    codes = np.rint(levels * (1 - np.exp(limited * np.float32(-1 / GAP_SCALE))))
    # In float32 the last of 65,535 levels may round to just above the range of its integer type.
    return np.minimum(codes, np.float32(np.iinfo(dtype).max)).astype(dtype)


@functools.cache
def gap_table(dtype: np.dtype) -> NDArray[np.float32]:
    """The gap in nats of every code `[256]` or `[65536]`, float32, read-only."""
    levels = np.iinfo(dtype).max
    fractions = np.arange(levels + 1, dtype=np.float64) / levels
    table = (-GAP_SCALE * np.log1p(-fractions * _SPAN)).astype(np.float32)
    table.flags.writeable = False
    return table


def split_ids(ids: NDArray[np.int64]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """The low 16 bits and the next 8 bits of ids."""
    return ids.astype(np.uint16), (ids >> 16).astype(np.uint8)


def join_ids(low: NDArray[np.uint16], high: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    """The ids, int64, of their planes; `high` is None where 16 bits hold the vocabulary."""
    ids = low.astype(np.int64)
    return ids if high is None else ids | (high.astype(np.int64) << 16)

"""Numbers to bytes and back: companded gaps, ids in two planes, and features in groups that share a scale.

A gap matters in proportion to its probability exp(-gap), so its code is fine near 0 and coarse far away:
code = round(levels (1 - exp(-gap / 3)) / (1 - exp(-24 / 3))); gaps beyond 24 nats are stored as 24.
With 255 levels the step is 0.012 nats at gap 0 and 0.33 at gap 10; the first ranks take 65,535 levels, steps of
0.00005 and 0.0013.
"""

import functools

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 64
GROUP_LEVELS = 127
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


def encode_groups(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The codes `[..., D]` and scales `[..., ceil(D / 64)]` of values `[..., D]`: a value is its code times its scale.

    The largest number of a group has code 127, so no other is off by more than half a 127th of it (and what float16
    adds to that: 0.004 of it in all).
    """
    starts = np.arange(0, values.shape[-1], GROUP_SIZE)
    largest = np.maximum.reduceat(np.abs(values), starts, axis=-1)
    scales = (largest / GROUP_LEVELS).astype(np.float16)
    steps = _spread(scales, values.shape[-1])
    codes = np.divide(values, steps, out=np.zeros_like(values, np.float32), where=steps > 0)
    return np.clip(np.rint(codes), -GROUP_LEVELS, GROUP_LEVELS).astype(np.int8), scales


def decode_groups(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """The values `[..., D]` that `encode_groups` stored."""
    return codes.astype(np.float32) * _spread(scales, codes.shape[-1])


def _spread(scales: NDArray[np.float16], size: int) -> NDArray[np.float32]:
    return np.repeat(scales.astype(np.float32), GROUP_SIZE, axis=-1)[..., :size]

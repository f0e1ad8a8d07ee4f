"""Numbers to bytes and back: gaps as steps from rank to rank, ids in two planes, features in groups that share a scale.

Stored gaps are whole numbers of 1/2048 nat, so that every reader computes the same ones. Ranks 2 to 4 take 16 bits
each. From then on one byte says how far the gap is from that of the rank before, as it was stored: the errors do not
add up, and neighbours are so close that a byte is five times as exact as it would be about the gap itself.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 64
GROUP_LEVELS = 127
NUM_WIDE_RANKS = 3
"""Ranks 2 to 4."""
UNITS_PER_NAT = 2048
WIDE_LIMIT = 2**16 - 1
STEP_SCALE = 2.0
STEP_LIMIT = 16.0
_MOST_UNITS = 2**24


def encode_gaps(gaps: NDArray[np.float32], counts: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The codes `[E]` of ascending gaps in nats, and the low bytes `[T, 3]` of ranks 2 to 4; `counts` `[T]` per token.

    A gap of ranks 2 to 4 above 31.9 nats is stored as that, a step above 16 as 16, which later steps make up for.
    """
    units = np.minimum(gaps, np.float32(_MOST_UNITS / UNITS_PER_NAT))
    units *= UNITS_PER_NAT
    units = np.rint(units, out=units).astype(np.int32)
    # From the token with the most entries to that with the fewest: those that have a rank are the first so many.
    tokens = np.argsort(-counts.astype(np.int16), kind="stable")
    num_having = len(tokens) - np.cumsum(np.bincount(counts))[:-1]
    # Rank after rank, so that every step below goes through memory in order.
    first, stops = (np.cumsum(counts) - counts)[tokens], np.cumsum(num_having).tolist()
    ranks = [slice(stop - having, stop) for stop, having in zip(stops, num_having.tolist(), strict=True)]
    places = np.empty(len(gaps), np.int64)
    for number, rank in enumerate(ranks):
        np.add(first[: rank.stop - rank.start], number, out=places[rank])
    codes, low = np.empty(len(gaps), np.uint8), np.empty((len(counts), NUM_WIDE_RANKS), np.uint8)
    codes[places], low[tokens] = _encode_ranks(units.take(places), ranks)
    return codes, low


def _encode_ranks(units: NDArray[np.int32], ranks: Sequence[slice]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The codes of gaps in units, rank after rank, and the low bytes `[T, 3]` of the tokens, most ranks first."""
    codes = np.zeros(len(units), np.uint8)
    low = np.zeros((ranks[0].stop if ranks else 0, NUM_WIDE_RANKS), np.uint8)
    for number, rank in enumerate(ranks[1 : 1 + NUM_WIDE_RANKS]):
        stored = np.minimum(units[rank], WIDE_LIMIT)
        codes[rank], low[: len(stored), number] = stored >> 8, stored & 0xFF
    for rank in ranks[1 + NUM_WIDE_RANKS :]:
        stored = stored[: rank.stop - rank.start]  # the gap of each token's rank before, as a reader finds it
        steps = _nearest_steps().take(units[rank] - stored, mode="clip")
        codes[rank] = steps  # their low byte
        stored = stored + (steps >> 8)
    return codes, low


def decode_gaps(
    codes: NDArray[np.uint8], low: NDArray[np.uint8], counts: NDArray[np.unsignedinteger]
) -> NDArray[np.float32]:
    """The gaps `[E]` in nats that `encode_gaps` stored."""
    counts = counts.astype(np.int64)
    starts = np.cumsum(counts) - counts
    codes = np.append(codes, np.zeros(NUM_WIDE_RANKS, np.uint8))
    # `clip` skips a check that no code can fail: faster by a third.
    steps = step_table().take(codes, mode="clip")
    # From the 4th rank to the 1st: a token of fewer entries has those of later tokens there, of ranks set after it.
    places = starts + np.arange(NUM_WIDE_RANKS, -1, -1)[:, None]
    wide = codes[places].astype(np.int32) << 8
    wide[:-1] |= low.T[::-1]
    wide[-1] = 0
    wide[:-1] -= wide[1:]
    steps[places] = wide
    # The sum over all tokens may exceed 32 bits and wrap around; differences within a token do not.
    units = np.cumsum(steps[: len(codes) - NUM_WIDE_RANKS], dtype=np.int32)
    units -= units[starts].repeat(counts)
    gaps = units.astype(np.float32)
    gaps *= np.float32(1 / UNITS_PER_NAT)
    return gaps


@functools.cache
def step_table() -> NDArray[np.int32]:
    """The step of every code `[256]` in units, ascending from 0, read-only: fine where it is small."""
    fractions = np.arange(256) / 255
    nats = -STEP_SCALE * np.log1p(-fractions * (1 - np.exp(-STEP_LIMIT / STEP_SCALE)))
    table = np.rint(UNITS_PER_NAT * nats).astype(np.int32)
    table.flags.writeable = False
    return table


@functools.cache
def _nearest_steps() -> NDArray[np.int32]:
    """The step nearest to each number of units up to the largest step, times 256, plus its code."""
    table = step_table().astype(np.int64)
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, np.arange(table[-1] + 1))
    return ((table[codes] << 8) | codes).astype(np.int32)


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


def widened(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The values, float16 or float32, as new float32."""
    if values.dtype != np.float16:
        return values.astype(np.float32)
    return _halves().take(values.view(np.uint16), mode="clip")  # NumPy converts them one by one: twice as slow


@functools.cache
def _halves() -> NDArray[np.float32]:
    """What every pattern of 16 bits means as a float16 `[65536]`."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _spread(scales: NDArray[np.float16], size: int) -> NDArray[np.float32]:
    return np.repeat(scales.astype(np.float32), GROUP_SIZE, axis=-1)[..., :size]

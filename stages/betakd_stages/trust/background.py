"""Chance: how likely the tokens of an answer are for somebody who knows the other answers of its group, but no image.

Interpolated n-grams of the answers in the group. With contexts of k = 0 to K tokens before token t, the start of the
answer being one of them,
    b_0 = 1 / V
    b_k = (c_k(context, token) - own + b_{k-1}) / (c_k(context) - own + 1)
where c counts over all samples of the group and `own` is what this sample itself adds, so that it is left out. At the
first token the one context is the start: an answer of one token gets the leave-one-out frequency of that label in its
group. Contexts as long as possible matter in sentences: in "no even digit is this" all is decided by "no".

Counts stand in one table of fixed size by hashes of group, context and token: memory does not grow with the cache, and
chance collisions, which make the background a little more likely, are rare below some ten million distinct contexts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CONTEXT = 6
TABLE_SLOTS = 2**26
"""Of 4 bytes; memory is taken only where something was counted."""
START = -1
CONTEXT, EVENT = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The answers of S samples, N tokens one after another."""

    token_ids: NDArray[np.int64]
    """[N]"""
    token_ptr: NDArray[np.int64]
    """[S + 1], where each sample's tokens start and end."""
    groups: NDArray[np.int32]
    """[S]"""

    @property
    def sample_index(self) -> NDArray[np.int64]:
        """[N] which sample each token belongs to."""
        return np.repeat(np.arange(len(self.groups)), np.diff(self.token_ptr))

    @property
    def places(self) -> NDArray[np.int64]:
        """[N] how many tokens of its sample stand before each token."""
        return np.arange(len(self.token_ids)) - self.token_ptr[self.sample_index]


class Background:
    """Counts of contexts and of the tokens behind them."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self._counts = np.zeros(TABLE_SLOTS, np.int32)

    def add(self, answers: Answers) -> None:
        """Count these answers; each sample is to be counted once."""
        for valid, contexts, events in _hashes(answers):
            for hashes in (contexts, events):
                np.add.at(self._counts, _slots(hashes[valid]), 1)

    def log_probabilities(self, answers: Answers) -> NDArray[np.float64]:
        """The log probability `[N]` of every token, each sample left out of its own background."""
        probability = np.full(len(answers.token_ids), 1 / self.vocabulary_size)
        sample_index = answers.sample_index
        for valid, contexts, events in _hashes(answers):
            samples = sample_index[valid]
            of_context = self._counts[_slots(contexts[valid])] - _own_counts(contexts[valid], samples)
            of_event = self._counts[_slots(events[valid])] - _own_counts(events[valid], samples)
            probability[valid] = (of_event + probability[valid]) / (of_context + 1)
        return np.log(probability)


def _hashes(answers: Answers) -> Iterator[tuple[NDArray[np.bool_], Hashes, Hashes]]:
    """For contexts of 1 to MAX_CONTEXT tokens, start included: which tokens `[N]` have one, and the hashes `[N]` of
    their contexts and of contexts and tokens."""
    places, tokens = answers.places, answers.token_ids
    hashes = _mixed(np.full(len(tokens), CONTEXT, np.uint64), answers.groups[answers.sample_index])
    for length in range(1, MAX_CONTEXT + 1):
        valid = places >= length - 1
        if not valid.any():
            return
        before = np.roll(tokens, length)
        hashes = _mixed(hashes, np.where(places == length - 1, START, before))
        yield valid, hashes, _mixed(hashes ^ np.uint64(EVENT), tokens)


def _mixed(hashes: Hashes, values: NDArray[np.integer]) -> Hashes:
    """Each hash with one value more, by the finalizer of splitmix64."""
    mixed = (hashes ^ values.astype(np.int64).view(np.uint64)) + np.uint64(CONTEXT)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _slots(hashes: Hashes) -> NDArray[np.int64]:
    return (hashes & np.uint64(TABLE_SLOTS - 1)).astype(np.int64)


def _own_counts(hashes: Hashes, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often `[N]` the sample of each token has the same hash."""
    _, inverse, counts = np.unique(_mixed(hashes, samples), return_inverse=True, return_counts=True)
    return counts[inverse]

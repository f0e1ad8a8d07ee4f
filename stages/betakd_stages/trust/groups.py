"""Question groups: samples among which a teacher may be good or bad as a whole."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from betakd_stages.data.sample import Sample

OTHERS = "(others)"


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The group of each of S samples, as an index into the names, which are in alphabetical order."""

    names: tuple[str, ...]
    of_sample: NDArray[np.int32]
    """[S]"""

    def taken(self, places: NDArray[np.int64]) -> "Groups":
        """Those of the samples of these places, in this order."""
        return Groups(self.names, self.of_sample[places])

    def members(self, number: int) -> NDArray[np.int64]:
        """The places of the samples of a group."""
        return np.flatnonzero(self.of_sample == number)


def group_name(sample: Sample, num_words: int) -> str:
    """The category and the first words of the first question, in lower case."""
    words = " ".join(sample.turns[0].question.lower().split()[:num_words])
    return ": ".join(part for part in (sample.category, words) if part)


def make_groups(names: Iterable[str], smallest: int) -> Groups:
    """The groups of samples with these names; those of fewer than `smallest` samples are one, the others."""
    listed = list(names)
    counts = Counter(listed)
    kept = sorted(name for name, count in counts.items() if count >= smallest)
    known = {name: number for number, name in enumerate(kept)}
    of_sample = np.fromiter((known.get(name, len(kept)) for name in listed), np.int32, len(listed))
    return Groups((*kept, OTHERS) if len(kept) < len(counts) else tuple(kept), of_sample)

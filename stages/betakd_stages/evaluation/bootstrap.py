"""How sure a score is, and whether two runs differ: the bootstrap over the units that a benchmark scores.

A score is a function of sums over units (questions; images in MME; a question with its rotations in MMBench). Units
that add the same are interchangeable, so a resample is a draw of how often each distinct addition occurs, from a
multinomial distribution: the same distribution as that of drawing units one by one, in a fraction of the time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

Floats = NDArray[np.float64]

NUM_RESAMPLES = 10_000
LEVEL = 0.95
_MAX_DRAWS = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """The percentile interval of a bootstrap."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A run's score minus another's on the same units; `p_value` is two-sided, for no difference at all."""

    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True, slots=True)
class Tally:
    """What each unit adds: `additions` [U, S]; its stratum, drawn to its own size, `strata` int [U]; and `score`, from
    sums over units [R, S] to scores [R]."""

    additions: Floats
    strata: NDArray[np.int64]
    score: Callable[[Floats], Floats]

    def value(self) -> float:
        """The score itself."""
        return float(self.score(self.additions.sum(axis=0, keepdims=True))[0])


def mean_tally(values: ArrayLike, groups: Iterable[object] | None = None) -> Tally:
    """The tally of the mean of `values` [N]; the units are the values, or `groups` [N] of values drawn together."""
    array = np.asarray(values, dtype=np.float64)
    assert array.size, "a mean is of one value at least"
    names = list(range(len(array))) if groups is None else list(groups)
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    unit = np.array([number[name] for name in names], dtype=np.int64)
    additions = np.stack([np.bincount(unit, weights=array), np.bincount(unit)], axis=1).astype(np.float64)
    return Tally(additions, np.zeros(len(additions), dtype=np.int64), lambda sums: sums[:, 0] / sums[:, 1])


def bootstrap(tally: Tally, seed: int, *, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL) -> Interval:
    """The interval of a score. The same seed gives the same interval."""
    return _percentiles(tally.score(resampled_sums(tally.additions, tally.strata, seed, num_resamples)), level)


def paired_bootstrap(
    first: Tally | ArrayLike, second: Tally | ArrayLike, seed: int, *, num_resamples: int = NUM_RESAMPLES
) -> PairedDifference:
    """How much `first` scores above `second`, on resamples that hold the same units of both.

    Either are tallies, or values per question in the same order (right or wrong, or scores), whose means are compared.
    The p-value is twice the share of resamples on the smaller side of no difference, those without any on both sides:
    it is below 0.05 where the interval of 95 % leaves out 0. Source: Efron and Tibshirani 1993, chapters 13 and 15.
    """
    one, other = (side if isinstance(side, Tally) else mean_tally(side) for side in (first, second))
    assert np.array_equal(one.strata, other.strata), "both are of the same units"
    width = one.additions.shape[1]
    both = np.concatenate([one.additions, other.additions], axis=1)
    sums = resampled_sums(both, one.strata, seed, num_resamples)
    differences = one.score(sums[:, :width]) - other.score(sums[:, width:])
    smaller_side = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (float(smaller_side) + 1) / (num_resamples + 1))
    return PairedDifference(one.value() - other.value(), _percentiles(differences, LEVEL), p_value)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """The exact two-sided p-value of McNemar's test: of questions that one run alone has right, half are each run's.

    first, second: right or wrong per question [N]. Source: McNemar 1947; the exact form is a binomial test.
    """
    right, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((right & ~other).sum()), int((other & ~right).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def resampled_sums(additions: Floats, strata: NDArray[np.int64], seed: int, num_resamples: int) -> Floats:
    """The sums over units in each resample, [R, S]: of each stratum as many units are drawn as it has."""
    generator = np.random.default_rng(seed)
    sums = np.zeros((num_resamples, additions.shape[1]))
    for stratum in np.unique(strata):
        distinct, counts = np.unique(additions[strata == stratum], axis=0, return_counts=True)
        total = int(counts.sum())
        rows = max(1, _MAX_DRAWS // len(counts))
        for start in range(0, num_resamples, rows):
            size = min(rows, num_resamples - start)
            sums[start : start + size] += generator.multinomial(total, counts / total, size=size) @ distinct
    return sums


def _percentiles(values: Floats, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))

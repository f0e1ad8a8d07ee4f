"""Intervals and paired tests, against every resample of small samples, scipy, and hand-counted tables."""

import itertools

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from betakd_stages.evaluation.bootstrap import (
    Tally,
    bootstrap,
    mcnemar,
    mean_tally,
    paired_bootstrap,
    resampled_sums,
)


def coins(seed: int, size: int, probability: float) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(size) < probability


def test_resamples_have_the_frequencies_of_all_resamples_that_there_are() -> None:
    values = np.array([0.0, 0.3, 0.3, 1.0, 0.6])
    everything = [round(sum(drawn), 6) for drawn in itertools.product(values, repeat=len(values))]
    sums = resampled_sums(values[:, None], np.zeros(5, dtype=np.int64), seed=1, num_resamples=200_000)
    found = np.round(sums[:, 0], 6)
    for total in set(everything):
        assert (found == total).mean() == pytest.approx(everything.count(total) / len(everything), abs=0.005)


def test_units_of_several_numbers_are_drawn_whole_and_each_stratum_keeps_its_size() -> None:
    additions = np.array([[1.0, 10.0, 1.0, 0.0], [2.0, 20.0, 1.0, 0.0], [7.0, 70.0, 0.0, 1.0]])
    sums = resampled_sums(additions, np.array([0, 0, 1]), seed=0, num_resamples=1000)
    np.testing.assert_allclose(sums[:, 1], 10 * sums[:, 0])
    assert (sums[:, 2] == 2).all()
    assert (sums[:, 3] == 1).all()
    assert set(sums[:, 0]) == {2 + 7.0, 3 + 7.0, 4 + 7.0}


def test_the_interval_of_a_mean_is_scipys() -> None:
    right = coins(0, 3000, 0.7)
    ours = bootstrap(mean_tally(right), 0)
    theirs = scipy.stats.bootstrap((right.astype(float),), np.mean, method="percentile", rng=1, batch=500)
    np.testing.assert_allclose([ours.low, ours.high], theirs.confidence_interval, atol=0.001)


def test_groups_are_drawn_together() -> None:
    right = np.repeat(coins(2, 300, 0.5), 4)
    alone, grouped = bootstrap(mean_tally(right), 0), bootstrap(mean_tally(right, np.arange(1200) // 4), 0)
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(2, rel=0.1)  # sqrt(4)
    shuffled = np.random.default_rng(0).permutation(1200)
    assert bootstrap(mean_tally(right[shuffled], (np.arange(1200) // 4)[shuffled]), 0) == grouped


def test_a_paired_difference_has_scipys_interval_and_the_share_of_resamples_as_its_p_value() -> None:
    first, second = coins(3, 800, 0.74), coins(4, 800, 0.71)
    ours = paired_bootstrap(first, second, 0)
    differences = first.astype(float) - second
    theirs = scipy.stats.bootstrap((differences,), np.mean, method="percentile", rng=1, batch=500)
    assert ours.difference == pytest.approx(differences.mean())
    np.testing.assert_allclose([ours.interval.low, ours.interval.high], theirs.confidence_interval, atol=0.003)
    assert ours.p_value == pytest.approx(2 * (theirs.bootstrap_distribution <= 0).mean(), abs=0.02)


def test_p_values_equal_those_of_all_resamples_of_a_small_sample() -> None:
    first, second = np.array([1, 1, 1, 1, 0, 0]), np.array([0, 0, 1, 0, 1, 0])
    sums = [sum(drawn) for drawn in itertools.product(first - second, repeat=6)]
    exact = 2 * np.mean([total <= 0 for total in sums])
    found = paired_bootstrap(first, second, 0, num_resamples=200_000)
    assert found.difference == pytest.approx(2 / 6)
    assert found.p_value == pytest.approx(exact, abs=0.005)
    back = paired_bootstrap(second, first, 0, num_resamples=200_000)
    assert (back.difference, back.p_value) == (-found.difference, pytest.approx(exact, abs=0.005))


def test_pairing_makes_small_differences_of_similar_runs_visible() -> None:
    first = coins(5, 2000, 0.6)
    second = first.copy()
    second[np.flatnonzero(first)[:30]] = False
    paired = paired_bootstrap(first, second, 0)
    assert paired.interval.low > 0
    assert paired.p_value < 0.001
    alone = [bootstrap(mean_tally(side), 0) for side in (first, second)]
    assert alone[0].low < alone[1].high


def test_equal_runs_do_not_differ_and_p_is_never_zero() -> None:
    right = coins(6, 500, 0.5)
    same = paired_bootstrap(right, right, 0)
    assert (same.difference, same.interval.low, same.interval.high, same.p_value) == (0, 0, 0, 1)
    assert paired_bootstrap(np.ones(500), np.zeros(500), 0).p_value == pytest.approx(2 / 10_001)


def test_p_values_are_uniform_where_two_runs_are_equally_good() -> None:
    below = [paired_bootstrap(coins(n, 400, 0.6), coins(10_000 + n, 400, 0.6), n).p_value < 0.1 for n in range(250)]
    assert np.mean(below) == pytest.approx(0.1, abs=0.06)


def test_scores_other_than_means_are_compared_through_their_own_sums() -> None:
    def f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * sums[:, 0] / (2 * sums[:, 0] + sums[:, 1])

    generator = np.random.default_rng(7)
    kinds = generator.integers(0, 3, size=(2, 900))  # true positive, wrong, true negative
    additions = [np.stack([side == 0, side == 1], axis=1).astype(np.float64) for side in kinds]
    first, second = (Tally(side, np.zeros(900, dtype=np.int64), f1) for side in additions)
    found = paired_bootstrap(first, second, 0)
    drawn = generator.integers(0, 900, size=(4000, 900))
    expected = f1(additions[0][drawn].sum(axis=1)) - f1(additions[1][drawn].sum(axis=1))
    assert found.difference == pytest.approx(first.value() - second.value())
    np.testing.assert_allclose(
        [found.interval.low, found.interval.high], np.quantile(expected, [0.025, 0.975]), atol=0.006
    )


def test_the_same_seed_gives_the_same_numbers_however_resamples_are_cut_into_blocks() -> None:
    values = np.random.default_rng(0).random(3000)
    assert bootstrap(mean_tally(values), 3, num_resamples=1500) == bootstrap(mean_tally(values), 3, num_resamples=1500)
    first, other = (bootstrap(mean_tally(values), seed, num_resamples=1500) for seed in (3, 4))
    assert first != other
    np.testing.assert_allclose([first.low, first.high], [other.low, other.high], atol=0.002)


def test_mcnemar_is_the_binomial_test_of_the_questions_that_one_run_alone_has_right() -> None:
    first = np.array([1] * 30 + [1] * 12 + [0] * 4 + [0] * 20)
    second = np.array([1] * 30 + [0] * 12 + [1] * 4 + [0] * 20)
    by_hand = 2 * sum(scipy.special.comb(16, k) for k in range(5)) / 2**16
    assert mcnemar(first, second) == pytest.approx(by_hand)
    assert mcnemar(second, first) == pytest.approx(by_hand)
    assert mcnemar(first, first) == 1

"""Calibration against scikit-learn and against definitions, agreement by quartile against a sort by hand."""

import itertools

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from betakd_stages.evaluation.metrics import (
    area_under_risk_coverage,
    brier_score,
    calibration,
    expected_calibration_error,
    negative_log_likelihood,
    percent_by_quartile,
    reliability_table,
    selective_accuracies,
    selective_accuracy,
)
from betakd_stages.evaluation.temperature_scaling import fitted_temperature, scaled

GENERATOR = np.random.default_rng(0)
CONFIDENCES = GENERATOR.random(700).tolist()
CORRECT = (GENERATOR.random(700) < np.square(CONFIDENCES)).tolist()


def test_brier_and_likelihood_are_scikit_learns() -> None:
    assert brier_score(CONFIDENCES, CORRECT) == pytest.approx(brier_score_loss(CORRECT, CONFIDENCES), abs=1e-12)
    assert negative_log_likelihood(CONFIDENCES, CORRECT) == pytest.approx(log_loss(CORRECT, CONFIDENCES), abs=1e-12)


def test_the_reliability_table_is_scikit_learns_curve_and_gives_the_calibration_error() -> None:
    table = reliability_table(CONFIDENCES, CORRECT, num_bins=10)
    accuracies, confidences = calibration_curve(CORRECT, CONFIDENCES, n_bins=10)
    np.testing.assert_allclose([row["accuracy"] for row in table], accuracies, atol=1e-12)
    np.testing.assert_allclose([row["confidence"] for row in table], confidences, atol=1e-12)
    gaps = [row["num_answers"] * abs(row["accuracy"] - row["confidence"]) for row in table]
    assert expected_calibration_error(CONFIDENCES, CORRECT, num_bins=10) == pytest.approx(sum(gaps) / 700)


def test_certainty_that_is_wrong_costs_much_but_not_everything() -> None:
    assert negative_log_likelihood([1.0, 0.0], [True, False]) == pytest.approx(0, abs=1e-6)
    assert negative_log_likelihood([1.0], [False]) == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert brier_score([1.0, 0.0], [False, True]) == 1
    assert reliability_table([1.0], [True])[0]["high"] == 1


def test_half_right_answers_count_as_the_share_of_people_who_agree() -> None:
    """One answer of 0.3 is as three right ones and seven wrong ones of the same confidence."""
    apart = calibration([0.4] * 10, [True] * 3 + [False] * 7)
    together = calibration([0.4], [0.3])
    for name in ("expected_calibration_error", "negative_log_likelihood"):
        assert together[name] == pytest.approx(apart[name])
    assert together["brier_score"] == pytest.approx(0.01)  # of the share itself, not of ten single opinions


def test_accuracy_by_quartile_begins_with_the_surest_quarter() -> None:
    order = GENERATOR.permutation(8)
    confidences, correct = np.linspace(0.1, 0.8, 8), np.array([0, 0, 1, 0, 1, 0, 1, 1])
    found = percent_by_quartile(confidences[order].tolist(), correct[order].tolist())
    assert found == {"quartile1": 100, "quartile2": 50, "quartile3": 50, "quartile4": 0}
    assert percent_by_quartile([0.5], [True]) == {"quartile1": 100}


def test_selective_accuracy_is_that_of_the_surest_answers() -> None:
    order = np.argsort(CONFIDENCES)[::-1]
    expected = [np.mean(np.asarray(CORRECT)[order[:num]]) for num in range(1, 701)]
    np.testing.assert_allclose(selective_accuracies(CONFIDENCES, CORRECT), expected, atol=1e-12)
    assert area_under_risk_coverage(CONFIDENCES, CORRECT) == pytest.approx(1 - np.mean(expected))
    found = selective_accuracy(CONFIDENCES, CORRECT)
    assert list(found) == ["0.25", "0.5", "0.75", "0.9"]
    assert found["0.25"] == pytest.approx(100 * expected[174])
    assert found["0.9"] == pytest.approx(100 * expected[629])
    assert selective_accuracy([0.5], [True]) == dict.fromkeys(found, 100)


def test_among_equally_sure_answers_the_mean_over_all_orders_counts() -> None:
    confidences, correct = [0.9, 0.5, 0.5, 0.5, 0.2], [0.0, 1.0, 0.0, 1.0, 1.0]
    orders = [[0, *middle, 4] for middle in itertools.permutations([1, 2, 3])]
    running = [np.cumsum(np.asarray(correct)[order]) / np.arange(1, 6) for order in orders]
    np.testing.assert_allclose(selective_accuracies(confidences, correct), np.mean(running, axis=0))


def test_the_fitted_temperature_is_where_scikit_learns_likelihood_is_best_and_order_stays() -> None:
    temperature = fitted_temperature(CONFIDENCES, CORRECT)
    losses = {factor: log_loss(CORRECT, scaled(CONFIDENCES, temperature * factor)) for factor in (0.98, 1.0, 1.02)}
    assert losses[1.0] < min(losses[0.98], losses[1.02])
    assert losses[1.0] < log_loss(CORRECT, CONFIDENCES)
    after = scaled(CONFIDENCES, temperature)
    assert np.argsort(after).tolist() == np.argsort(CONFIDENCES).tolist()
    np.testing.assert_allclose(
        np.log(np.divide(after, np.subtract(1, after))) * temperature,
        np.log(np.divide(CONFIDENCES, np.subtract(1, CONFIDENCES))),
    )


def test_a_known_temperature_is_found_again() -> None:
    odds = GENERATOR.normal(0, 2, 20_000)
    correct = (GENERATOR.random(20_000) < 1 / (1 + np.exp(-odds))).tolist()
    too_sure = (1 / (1 + np.exp(-2.5 * odds))).tolist()
    assert fitted_temperature(too_sure, correct) == pytest.approx(2.5, rel=0.05)


def test_confidences_of_0_and_1_and_answers_that_are_all_right_still_have_a_temperature() -> None:
    assert 0 < fitted_temperature([1.0, 1.0, 0.9], [True, True, True]) < 1
    assert fitted_temperature([1.0, 1.0, 1.0], [True, False, True]) > 5
    assert scaled([0.0, 1.0], 2.0) == pytest.approx([0.0, 1.0], abs=1e-3)

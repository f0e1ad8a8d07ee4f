"""Calibration against scikit-learn and against definitions, agreement by quartile against a sort by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from betakd_stages.evaluation.metrics import (
    brier_score,
    calibration,
    expected_calibration_error,
    negative_log_likelihood,
    percent_by_quartile,
    reliability_table,
)

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

"""Metrics over answers: what fraction is right, and whether confidence means anything.

Where a rule gives parts of a point (TextVQA), `correct` holds fractions, and stands for the share of people who agree.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
NUM_PARTS = 4
SELECTED_SHARES = (0.25, 0.5, 0.75, 0.9)
LEAST_DOUBT = float(np.finfo(np.float32).eps)
"""Confidences are computed in fp32, where 1 stands for all that is nearer to it than this."""


def exact_match(answer: str, label: str) -> bool:
    """Whether answer and label are the same words."""
    return answer.split() == label.split()


def percent(flags: Sequence[float]) -> float:
    """The share of true flags in percent; NaN for none."""
    return 100.0 * float(np.mean(flags)) if len(flags) else float("nan")


def percent_by(categories: Sequence[str], flags: Sequence[float]) -> Mapping[str, float]:
    """The share of true flags in percent within each category, in order of first appearance."""
    return {
        category: percent([flag for own, flag in zip(categories, flags, strict=True) if own == category])
        for category in dict.fromkeys(categories)
    }


def percent_by_quartile(confidences: Sequence[float], flags: Sequence[float]) -> Mapping[str, float]:
    """The share of true flags in percent within each quarter of the answers, the most confident first."""
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    parts = np.array_split(np.asarray(flags, dtype=np.float64)[order], NUM_PARTS)
    return {f"quartile{number}": percent(part.tolist()) for number, part in enumerate(parts, start=1) if len(part)}


def expected_calibration_error(
    confidences: Sequence[float], correct: Sequence[float], num_bins: int = NUM_BINS
) -> float:
    """The mean gap between confidence and accuracy over equally wide bins, weighted by their share of answers, 0..1.

    Source: Naeini et al. 2015; Guo et al. 2017, equation (3).
    """
    confidence, right, bins = _binned(confidences, correct, num_bins)
    sums = np.bincount(bins, weights=right - confidence, minlength=num_bins)
    return float(np.abs(sums).sum() / max(len(confidence), 1))


def brier_score(confidences: Sequence[float], correct: Sequence[float]) -> float:
    """The mean squared gap between the confidence in an answer and whether it is right, 0..1. Source: Brier 1950."""
    gaps = np.asarray(confidences, dtype=np.float64) - np.asarray(correct, dtype=np.float64)
    return float(np.mean(gaps**2))


def negative_log_likelihood(confidences: Sequence[float], correct: Sequence[float]) -> float:
    """The mean of -log c over right answers and of -log(1 - c) over wrong ones, c the confidence, in nats.

    Confidences are kept LEAST_DOUBT away from 0 and 1.
    """
    confidence = np.clip(np.asarray(confidences, dtype=np.float64), LEAST_DOUBT, 1 - LEAST_DOUBT)
    right = np.asarray(correct, dtype=np.float64)
    return float(-np.mean(right * np.log(confidence) + (1 - right) * np.log1p(-confidence)))


def reliability_table(
    confidences: Sequence[float], correct: Sequence[float], num_bins: int = NUM_BINS
) -> list[dict[str, Any]]:
    """A row per bin that has answers: its borders, how many, their mean confidence and accuracy, 0..1."""
    confidence, right, bins = _binned(confidences, correct, num_bins)
    return [
        {
            "low": number / num_bins,
            "high": (number + 1) / num_bins,
            "num_answers": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(right[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def selective_accuracies(confidences: Sequence[float], correct: Sequence[float]) -> NDArray[np.float64]:
    """The accuracy `[N]`, 0..1, of the n most confident answers, for n from 1 to N.

    Among answers of equal confidence the order is a matter of chance: what is given is the mean over all orders.
    """
    _, group = np.unique(-np.asarray(confidences, dtype=np.float64), return_inverse=True)
    right = np.asarray(correct, dtype=np.float64)
    means = np.bincount(group, weights=right) / np.bincount(group)
    accuracies: NDArray[np.float64] = means[np.sort(group)].cumsum() / np.arange(1, len(right) + 1)
    return accuracies


def area_under_risk_coverage(confidences: Sequence[float], correct: Sequence[float]) -> float:
    """The mean share of wrong answers among the n most confident, over all n, 0..1: the smaller, the better is known
    which answers to trust. Source: Geifman, Uziel and El-Yaniv 2019, AURC."""
    return float(1 - selective_accuracies(confidences, correct).mean())


def selective_accuracy(confidences: Sequence[float], correct: Sequence[float]) -> dict[str, float]:
    """The accuracy in percent of the most confident quarter, half, ... of the answers, rounded up, by their share."""
    accuracies = selective_accuracies(confidences, correct)
    return {f"{share:g}": 100 * float(accuracies[math.ceil(share * len(accuracies)) - 1]) for share in SELECTED_SHARES}


def calibration_scores(confidences: Sequence[float], correct: Sequence[float]) -> dict[str, float]:
    """What says in one number whether a confidence is the share of right answers."""
    return {
        "expected_calibration_error": expected_calibration_error(confidences, correct),
        "brier_score": brier_score(confidences, correct),
        "negative_log_likelihood": negative_log_likelihood(confidences, correct),
    }


def calibration(confidences: Sequence[float], correct: Sequence[float]) -> dict[str, Any]:
    """Everything above that says whether confidence means anything; at least one answer."""
    return {
        **calibration_scores(confidences, correct),
        "area_under_risk_coverage": area_under_risk_coverage(confidences, correct),
        "selective_accuracy": selective_accuracy(confidences, correct),
        "reliability": reliability_table(confidences, correct),
    }


def _binned(
    confidences: Sequence[float], correct: Sequence[float], num_bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Confidences, what is right, and the number of each confidence's bin; 1 belongs to the last."""
    confidence = np.asarray(confidences, dtype=np.float64)
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    return confidence, np.asarray(correct, dtype=np.float64), bins

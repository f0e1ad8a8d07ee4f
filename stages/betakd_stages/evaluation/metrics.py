"""Metrics over answers: what fraction is right, and whether confidence means anything."""

from collections.abc import Mapping, Sequence

import numpy as np


def percent(flags: Sequence[bool]) -> float:
    """The share of true flags in percent; NaN for none."""
    return 100.0 * float(np.mean(flags)) if len(flags) else float("nan")


def percent_by(categories: Sequence[str], flags: Sequence[bool]) -> Mapping[str, float]:
    """The share of true flags in percent within each category, in order of first appearance."""
    return {
        category: percent([flag for own, flag in zip(categories, flags, strict=True) if own == category])
        for category in dict.fromkeys(categories)
    }


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], num_bins: int = 15) -> float:
    """The mean gap between confidence and accuracy over equally wide bins, weighted by their share of answers, 0..1.

    Source: Naeini et al. 2015; Guo et al. 2017, equation (3).
    """
    confidence = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    sums = np.bincount(bins, weights=right - confidence, minlength=num_bins)
    return float(np.abs(sums).sum() / max(len(confidence), 1))

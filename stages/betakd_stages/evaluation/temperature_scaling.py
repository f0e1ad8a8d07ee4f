"""Temperature scaling: one number, fitted on held-out answers, that makes confidences mean what they say.

Guo et al. 2017 divide logits by T and fit T by the likelihood of the labels. The confidence in a generated answer has
a logit of its own, that of being right: it is divided, and T fitted by the likelihood of what is right and wrong. The
order of the answers stays, so accuracy and selective accuracy do, too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from betakd_stages.evaluation.metrics import LEAST_DOUBT, negative_log_likelihood

LOG_TEMPERATURES = (-5.0, 5.0)
"""Where T is sought: where all held-out answers are right, or all wrong, no T would be the best."""


def fitted_temperature(confidences: Sequence[float], correct: Sequence[float]) -> float:
    """The temperature at which held-out confidences `[N]` have the smallest negative log likelihood."""
    found = minimize_scalar(
        lambda log_temperature: negative_log_likelihood(scaled(confidences, float(np.exp(log_temperature))), correct),
        bounds=LOG_TEMPERATURES,
        method="bounded",
    )
    return float(np.exp(found.x))


def scaled(confidences: Sequence[float], temperature: float) -> list[float]:
    """The confidences at this temperature; 1 leaves them, but for the LEAST_DOUBT that they are kept from 0 and 1."""
    kept: NDArray[np.float64] = np.clip(np.asarray(confidences, dtype=np.float64), LEAST_DOUBT, 1 - LEAST_DOUBT)
    values: list[float] = expit(logit(kept) / temperature).tolist()
    return values

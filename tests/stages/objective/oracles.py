"""The formulas of the objective in float64 NumPy, over the whole vocabulary, sharing no code with the package."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Probabilities `[V]`."""
    scaled = logits / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def log_softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Log-probabilities `[V]`."""
    scaled = logits / temperature
    shifted = scaled - scaled.max()
    return shifted - np.log(np.exp(shifted).sum())


def logsumexp(values: Array) -> float:
    """Log of the sum of exponentials; -inf of nothing."""
    if len(values) == 0:
        return -np.inf
    return float(values.max() + np.log(np.exp(values - values.max()).sum()))


def entropy(logits: Array, temperature: float = 1.0) -> float:
    """In nats."""
    log_p = log_softmax(logits, temperature)
    return float(-(np.exp(log_p) * log_p).sum())


def student_shaped_tail(teacher: Array, student: Array, kept: NDArray[np.int64]) -> Array:
    """Probabilities `[V]`: the teacher's at the kept ids, and its tail's mass spread as the student's."""
    tail = np.ones(len(teacher), dtype=bool)
    tail[kept] = False
    shaped = teacher.copy()
    if tail.any():
        shaped[tail] = teacher[tail].sum() * student[tail] / student[tail].sum()
    return shaped


def kl(p: Array, q: Array) -> float:
    """Of probabilities `[V]`; terms with p = 0 are 0."""
    inside = p > 0
    return float((p[inside] * (np.log(p[inside]) - np.log(q[inside]))).sum())


def cosine_distance(p: Array, q: Array) -> float:
    """1 - cos."""
    return float(1 - (p @ q) / np.sqrt((p @ p) * (q @ q)))


DISTRIBUTION_ENERGIES: dict[str, Callable[[Array, Array], float]] = {
    "fkl": kl,
    "cosine_probs": cosine_distance,
}
"""Energies of two distributions over the vocabulary, at their default settings."""


def sparse_energy(
    energy: Callable[[Array, Array], float],
    teacher_logits: Array,
    student_logits: Array,
    kept: NDArray[np.int64],
    temperature: float = 1.0,
) -> float:
    """The energy of one token where the teacher's tail takes the student's shape."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return energy(student_shaped_tail(p, q, kept), q)


def numerical_gradient(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences of a scalar function of `at`."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient

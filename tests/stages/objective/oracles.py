"""The formulas of the objective in float64 NumPy, over the whole vocabulary, sharing no code with the package."""

from collections.abc import Callable
from dataclasses import dataclass

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


def skewed(p: Array, q: Array, weight: float) -> Array:
    """weight p + (1 - weight) q."""
    return weight * p + (1 - weight) * q


def alpha_beta(p: Array, q: Array, a: float, b: float) -> float:
    """For a, b and a + b all different from 0."""
    c = a + b
    return float(-(p**a * q**b - a / c * p**c - b / c * q**c).sum() / (a * b))


def decoupled(p: Array, q: Array, gold: int, rest_weight: float = 0.5) -> float:
    """KL of (label, rest) plus the weighted KL of the rest, renormalised."""
    binary = [np.array([side[gold], np.delete(side, gold).sum()]) for side in (p, q)]
    rest = [np.delete(side, gold) / np.delete(side, gold).sum() for side in (p, q)]
    return kl(binary[0], binary[1]) + rest_weight * kl(rest[0], rest[1])


def adaptive(point: "Point", mass: float = 0.5) -> float:
    """Forward and reverse KL weighted by the frozen gaps over the smallest kept set that reaches `mass`."""
    order = point.kept[np.argsort(-point.frozen_p[point.kept])]
    num_head = int(np.searchsorted(np.cumsum(point.frozen_p[order]), mass) + 1)
    head = order[:num_head]
    gaps = np.abs(point.frozen_p - point.frozen_q)
    share = gaps[head].sum() / gaps.sum()
    return share * kl(point.p, point.q) + (1 - share) * kl(point.q, point.p)


def taid(point: "Point", t: float = 0.4) -> float:
    """KL from the frozen intermediate teacher."""
    intermediate = softmax((1 - t) * np.log(point.frozen_q) + t * np.log(point.frozen_p))
    return kl(intermediate, point.q)


@dataclass(frozen=True, slots=True)
class Point:
    """Teacher (its tail shaped as the student's) and student at one token; frozen: what carries no gradient."""

    p: Array
    q: Array
    frozen_p: Array
    frozen_q: Array
    kept: NDArray[np.int64]
    gold: int


DISTRIBUTION_ENERGIES: dict[str, Callable[[Point], float]] = {
    "adaptive_kl": adaptive,
    "alpha_beta": lambda at: alpha_beta(at.p, at.q, 0.2, 0.7),
    "cosine_probs": lambda at: cosine_distance(at.p, at.q),
    "dkd": lambda at: decoupled(at.p, at.q, at.gold),
    "fkl": lambda at: kl(at.p, at.q),
    "js": lambda at: 0.5 * kl(at.p, skewed(at.p, at.q, 0.5)) + 0.5 * kl(at.q, skewed(at.p, at.q, 0.5)),
    "mse_probs": lambda at: float(((at.p - at.q) ** 2).sum()),
    "rkl": lambda at: kl(at.q, at.p),
    "skew_fkl": lambda at: kl(at.p, skewed(at.p, at.q, 0.1)),
    "skew_rkl": lambda at: kl(at.q, skewed(at.q, at.p, 0.1)),
    "taid": taid,
    "tvd": lambda at: float(np.abs(at.p - at.q).sum() / 2),
}
"""Energies of two distributions over the vocabulary, at their default settings."""


def point(
    teacher_logits: Array,
    student_logits: Array,
    frozen_logits: Array,
    kept: NDArray[np.int64],
    gold: int,
    temperature: float = 1.0,
) -> Point:
    """The point of one token, at one temperature for both sides."""
    teacher = softmax(teacher_logits, temperature)
    student, frozen = softmax(student_logits, temperature), softmax(frozen_logits, temperature)
    return Point(
        student_shaped_tail(teacher, student, kept),
        student,
        student_shaped_tail(teacher, frozen, kept),
        frozen,
        kept,
        gold,
    )


def cross_entropy(p: Array, q: Array) -> float:
    """Minus the sum of p log q."""
    return float(-(p * np.log(q)).sum())


def standardised(logits: Array) -> Array:
    """As the paper's code: by the unbiased deviation plus 1e-8."""
    return (logits - logits.mean()) / (logits.std(ddof=1) + 1e-8)


def published_adaptive(teacher_logits: Array, student_logits: Array) -> float:
    """The paper's code: ascending order, mask not carried back to the vocabulary's order, cross-entropy part."""
    p, q = softmax(teacher_logits), softmax(student_logits)
    head = np.cumsum(np.sort(p)) >= 0.5
    gaps = np.abs(p - q)
    share = gaps[head].sum() / gaps.sum()
    return share * cross_entropy(p, q) + (1 - share) * kl(q, p)


def published_taid(teacher_logits: Array, student_logits: Array, frozen_logits: Array, t: float = 0.4) -> float:
    """The paper's code."""
    return cross_entropy(softmax((1 - t) * frozen_logits + t * teacher_logits), softmax(student_logits))


PUBLISHED_ENERGIES: dict[str, Callable[[Array, Array, Array, int], float]] = {
    "adaptive_kl": lambda t, s, frozen, gold: published_adaptive(t, s),
    "cosine_logits": lambda t, s, frozen, gold: cosine_distance(standardised(t), standardised(s)),
    "cosine_probs": lambda t, s, frozen, gold: cosine_distance(softmax(t), softmax(s)),
    "dkd": lambda t, s, frozen, gold: decoupled(softmax(t), softmax(s), gold),
    "fkl": lambda t, s, frozen, gold: cross_entropy(softmax(t), softmax(s)),
    "js": lambda t, s, frozen, gold: (
        0.1 * kl(softmax(t), skewed(softmax(t), softmax(s), 0.1))
        + 0.9 * kl(softmax(s), skewed(softmax(t), softmax(s), 0.1))
    ),
    "mse_logits": lambda t, s, frozen, gold: float(((standardised(t) - standardised(s)) ** 2).mean()),
    "mse_probs": lambda t, s, frozen, gold: float(((softmax(t) - softmax(s)) ** 2).mean()),
    "rkl": lambda t, s, frozen, gold: kl(softmax(s), softmax(t)),
    "skew_fkl": lambda t, s, frozen, gold: cross_entropy(softmax(t), skewed(softmax(t), softmax(s), 0.1)),
    "skew_rkl": lambda t, s, frozen, gold: kl(softmax(s), skewed(softmax(s), softmax(t), 0.1)),
    "taid": lambda t, s, frozen, gold: published_taid(t, s, frozen),
    "tvd": lambda t, s, frozen, gold: float(np.abs(softmax(t) - softmax(s)).sum() / 2),
}
"""What the paper's code computes of full logits (teacher, student, frozen student, label) at temperature 1."""


def numerical_gradient(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences of a scalar function of `at`."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient

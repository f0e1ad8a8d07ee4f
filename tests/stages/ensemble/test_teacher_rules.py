"""The weights of teachers against the formulas in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from betakd_stages.ensemble.rules import teacher_weights
from betakd_stages.targets import TeacherTargets

Floats = NDArray[np.float64]
Teachers = list[TeacherTargets]
SAMPLE_INDEX = np.array([0, 0, 0, 1, 2, 2])
HELD = np.array([[True, True, True], [True, True, True], [False, True, True]])
NUM_TOKENS, NUM_SAMPLES, NUM_TEACHERS, VOCABULARY_SIZE = 6, 3, 3, 11


@pytest.fixture
def logits() -> Floats:
    return np.random.default_rng(0).normal(scale=2.0, size=(NUM_TEACHERS, NUM_TOKENS, VOCABULARY_SIZE))


@pytest.fixture
def teachers(logits: Floats) -> list[TeacherTargets]:
    return [
        TeacherTargets.from_logits(
            torch.from_numpy(of_one),
            torch.arange(NUM_TOKENS),
            sample_index=torch.from_numpy(SAMPLE_INDEX),
            num_samples=NUM_SAMPLES,
        )
        for of_one in logits
    ]


def probabilities(logits: Floats) -> Floats:
    shifted = np.exp(logits)
    return shifted / shifted.sum(axis=-1, keepdims=True)


def of_samples(values: Floats) -> Floats:
    return np.stack([values[sample == SAMPLE_INDEX].mean(axis=0) for sample in range(NUM_SAMPLES)])


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_entropy_weights_are_exp_of_minus_entropy_normalised(
    teachers: Teachers, logits: Floats, per_token: bool, scale: float
) -> None:
    weights = teacher_weights(
        "entropy", teachers, torch.from_numpy(HELD), per_token=per_token, entropy_scale=scale
    ).numpy()

    p = probabilities(logits)
    entropies = -(p * np.log(p)).sum(axis=2).T
    if not per_token:
        entropies = of_samples(entropies)[SAMPLE_INDEX]
    raw = np.exp(-entropies / scale) * HELD[SAMPLE_INDEX]
    np.testing.assert_allclose(weights, raw / raw.sum(axis=1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("per_token", [False, True])
def test_confidence_weights_are_those_of_ca_mkd(teachers: Teachers, logits: Floats, per_token: bool) -> None:
    weights = teacher_weights("confidence", teachers, torch.from_numpy(HELD), per_token=per_token).numpy()

    gold = np.stack([of_one[np.arange(NUM_TOKENS), np.arange(NUM_TOKENS)] for of_one in probabilities(logits)], axis=1)
    losses = -np.log(gold)
    if not per_token:
        losses = of_samples(losses)[SAMPLE_INDEX]
    for token, sample in enumerate(SAMPLE_INDEX):
        members = np.flatnonzero(HELD[sample])
        share = np.exp(losses[token, members]) / np.exp(losses[token, members]).sum()
        expected = np.zeros(NUM_TEACHERS)
        expected[members] = (1 - share) / (len(members) - 1)
        np.testing.assert_allclose(weights[token], expected, atol=1e-12)


def test_uniform_weights_are_alike_among_those_who_hold_the_sample(teachers: Teachers) -> None:
    weights = teacher_weights("uniform", teachers, torch.from_numpy(HELD))

    np.testing.assert_allclose(weights[:4], 1 / 3)
    np.testing.assert_allclose(weights[4:], [[0.0, 0.5, 0.5]] * 2)


def test_trust_is_shared_out_and_no_trust_at_all_counts_alike(teachers: Teachers) -> None:
    trust = torch.tensor([[0.2, 0.6, 0.0], [0.0, 0.0, 0.0], [0.9, 0.0, 0.5]])

    weights = teacher_weights("trust", teachers, torch.from_numpy(HELD), given=trust)

    np.testing.assert_allclose(weights[0], [0.25, 0.75, 0.0], atol=1e-7)
    np.testing.assert_allclose(weights[3], [1 / 3] * 3)
    np.testing.assert_allclose(weights[4], [0.0, 0.0, 1.0])


@pytest.mark.parametrize("rule", ["uniform", "entropy", "confidence", "trust", "learned"])
@pytest.mark.parametrize("per_token", [False, True])
def test_one_teacher_has_weight_one(teachers: Teachers, rule: str, per_token: bool) -> None:
    held = torch.ones(NUM_SAMPLES, 1, dtype=torch.bool)

    alone = teacher_weights(rule, teachers[:1], held, per_token=per_token, given=torch.rand(NUM_SAMPLES, 1))

    assert torch.equal(alone, torch.ones(NUM_TOKENS, 1, dtype=torch.float64))


@pytest.mark.parametrize("rule", ["uniform", "entropy", "confidence", "trust", "learned"])
def test_weights_sum_to_one_and_whoever_is_alone_carries_the_sample(teachers: Teachers, rule: str) -> None:
    held = torch.tensor([[True, False, False], [False, True, True], [True, True, True]])

    weights = teacher_weights(rule, teachers, held, given=torch.rand(NUM_SAMPLES, NUM_TEACHERS))

    np.testing.assert_allclose(weights.sum(dim=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(weights[:3], [[1.0, 0.0, 0.0]] * 3)
    assert (weights[3, 0] == 0).all()

"""The mixture of teachers against the dense mixture in NumPy float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from betakd_stages.ensemble.mixing import mix_targets
from betakd_stages.errors import MismatchError
from betakd_stages.targets import TeacherTargets

Logits = NDArray[np.float64]
Ids = NDArray[np.int64]
NUM_TOKENS, VOCABULARY_SIZE, NUM_TEACHERS = 7, 60, 3
TEMPERATURES = (0.5, 1.0, 2.0, 5.0)


@pytest.fixture
def logits() -> NDArray[np.float64]:
    """[T, N, V]"""
    return np.random.default_rng(1).normal(scale=3.0, size=(NUM_TEACHERS, NUM_TOKENS, VOCABULARY_SIZE))


@pytest.fixture
def gold() -> NDArray[np.int64]:
    return np.random.default_rng(2).integers(VOCABULARY_SIZE, size=NUM_TOKENS)


@pytest.fixture
def weights() -> NDArray[np.float64]:
    """[N, T], one of them 0."""
    values = np.random.default_rng(3).random((NUM_TOKENS, NUM_TEACHERS))
    values[0, 1] = 0.0
    return values / values.sum(axis=1, keepdims=True)


def targets_of(logits: NDArray[np.float64], gold: NDArray[np.int64], top_k: int | None = None) -> TeacherTargets:
    temperatures = TEMPERATURES
    return TeacherTargets.from_logits(
        torch.from_numpy(logits), torch.from_numpy(gold), top_k=top_k, temperatures=temperatures
    )


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def dense_mixture(logits: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("nt,tnv->nv", weights, softmax(logits))


def as_dense(values: Tensor, targets: TeacherTargets) -> NDArray[np.float64]:
    dense = np.zeros((targets.num_tokens, VOCABULARY_SIZE))
    for token in range(targets.num_tokens):
        for column in np.flatnonzero(targets.kept[token].numpy()):
            dense[token, int(targets.ids[token, column])] = values[token, column]
    return dense


@pytest.mark.parametrize("temperature", [*TEMPERATURES, 1.3])
def test_with_everything_kept_the_mixture_is_the_dense_one(
    logits: Logits, gold: Ids, weights: Logits, temperature: float
) -> None:
    mixed = mix_targets([targets_of(of_one, gold) for of_one in logits], torch.from_numpy(weights))

    expected = softmax(np.log(dense_mixture(logits, weights)) / temperature)
    found = as_dense(mixed.log_probabilities(temperature).exp(), mixed)
    np.testing.assert_allclose(found, expected, atol=1e-12, rtol=0)
    np.testing.assert_allclose(
        mixed.gold_log_probability(temperature), np.log(expected[np.arange(NUM_TOKENS), gold]), atol=1e-12, rtol=0
    )
    np.testing.assert_allclose(
        mixed.entropy(temperature), -(expected * np.log(expected)).sum(axis=1), atol=1e-12, rtol=0
    )
    assert torch.isneginf(mixed.tail_lse).all()


def test_entries_are_sorted_and_relative_to_the_largest(logits: Logits, gold: Ids, weights: Logits) -> None:
    mixed = mix_targets(
        [targets_of(of_one, gold, top_k=k) for of_one, k in zip(logits, (5, 9, 30), strict=True)],
        torch.from_numpy(weights),
    )

    assert (mixed.logits[:, 0] == 0).all()
    assert ((mixed.logits[:, 1:] <= mixed.logits[:, :-1]) | ~mixed.kept[:, 1:]).all()
    assert (mixed.kept[:, 1:] <= mixed.kept[:, :-1]).all()
    assert (mixed.ids[~mixed.kept] == 0).all()
    assert [len(set(row[kept].tolist())) for row, kept in zip(mixed.ids, mixed.kept, strict=True)] == mixed.kept.sum(
        dim=1
    ).tolist()


def test_sparse_teachers_are_mixed_with_their_tails_spread_evenly(logits: Logits, gold: Ids, weights: Logits) -> None:
    parts = [targets_of(of_one, gold, top_k=k) for of_one, k in zip(logits, (5, 9, 30), strict=True)]

    mixed = mix_targets(parts, torch.from_numpy(weights))

    completed = np.zeros_like(logits)
    unions: list[set[int]] = [set() for _ in range(NUM_TOKENS)]
    for number, (of_one, k) in enumerate(zip(logits, (5, 9, 30), strict=True)):
        for token, probabilities in enumerate(softmax(of_one)):
            top = set(np.argsort(-probabilities)[:k].tolist())
            if int(gold[token]) not in top:
                top = set(np.argsort(-probabilities)[: k - 1].tolist()) | {int(gold[token])}
            others = [index for index in range(VOCABULARY_SIZE) if index not in top]
            completed[number, token] = probabilities
            completed[number, token, others] = probabilities[others].mean()
            if weights[token, number] > 0:
                unions[token] |= top
    expected = np.einsum("nt,tnv->nv", weights, completed)
    for token, union in enumerate(unions):
        members = sorted(union)
        assert sorted(mixed.ids[token][mixed.kept[token]].tolist()) == members
        found = as_dense(mixed.log_probabilities().exp(), mixed)[token, members]
        np.testing.assert_allclose(found, expected[token, members], rtol=1e-10)
        np.testing.assert_allclose(
            mixed.tail_log_probability()[token].exp(), 1 - expected[token, members].sum(), rtol=1e-9
        )


@pytest.mark.parametrize(("temperature", "tolerance"), [(0.5, 1.5), (1.0, 0.5), (1.7, 0.3), (5.0, 0.2)])
def test_kept_and_rest_sum_to_one_with_a_rest_near_the_true_one(
    logits: Logits, gold: Ids, weights: Logits, temperature: float, tolerance: float
) -> None:
    parts = [targets_of(of_one, gold, top_k=12) for of_one in logits]

    mixed = mix_targets(parts, torch.from_numpy(weights))

    rest = mixed.tail_log_probability(temperature).exp()
    assert (rest > 0).all()
    np.testing.assert_allclose(mixed.log_probabilities(temperature).exp().sum(dim=1) + rest, 1.0, atol=1e-12)
    true = softmax(np.log(dense_mixture(logits, weights)) / temperature)
    kept = as_dense(mixed.kept.double(), mixed).astype(bool)
    np.testing.assert_allclose(rest, np.where(kept, 0, true).sum(axis=1), rtol=tolerance)


def test_one_teacher_is_left_as_it_is(logits: Logits, gold: Ids) -> None:
    alone = targets_of(logits[0], gold, top_k=10)

    mixed = mix_targets([alone], torch.ones(NUM_TOKENS, 1))

    assert torch.equal(mixed.ids, alone.ids)
    for name in ("logits", "gold_logit", "tail_lse", "tail_energy"):
        torch.testing.assert_close(getattr(mixed, name), getattr(alone, name), atol=1e-12, rtol=0)


def test_a_teacher_of_weight_zero_adds_nothing(logits: Logits, gold: Ids) -> None:
    parts = [targets_of(of_one, gold, top_k=8) for of_one in logits]
    weights = torch.tensor([[0.0, 1.0, 0.0]]).expand(NUM_TOKENS, 3)

    mixed = mix_targets(parts, weights)

    assert torch.equal(mixed.ids, parts[1].ids)
    torch.testing.assert_close(mixed.tail_energy, parts[1].tail_energy, atol=1e-12, rtol=0)


def test_the_order_of_the_teachers_does_not_matter(logits: Logits, gold: Ids, weights: Logits) -> None:
    parts = [targets_of(of_one, gold, top_k=k) for of_one, k in zip(logits, (5, 9, 30), strict=True)]

    one, other = (
        mix_targets([parts[place] for place in order], torch.from_numpy(weights[:, order]))
        for order in ([0, 1, 2], [2, 0, 1])
    )

    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.tail_lse, other.tail_lse, atol=1e-12, rtol=0)
    torch.testing.assert_close(one.logits, other.logits, atol=1e-12, rtol=0)


def test_where_the_label_alone_is_kept_the_likeliest_id_is_known_to_be_elsewhere(
    logits: Logits, gold: Ids, weights: Logits
) -> None:
    parts = [targets_of(of_one, gold, top_k=1) for of_one in logits]

    mixed = mix_targets(parts, torch.from_numpy(weights))

    largest = softmax(logits).max(axis=2).T * weights
    expected = np.maximum(largest.max(axis=1), dense_mixture(logits, weights)[np.arange(NUM_TOKENS), gold])
    np.testing.assert_allclose(mixed.largest_probability(), expected, rtol=1e-9)


def test_temperatures_are_those_that_all_hold(gold: Ids, logits: Logits) -> None:
    parts = [
        TeacherTargets.from_logits(torch.from_numpy(of_one), torch.from_numpy(gold), top_k=5, temperatures=temperatures)
        for of_one, temperatures in zip(logits, [(1.0, 2.0), (0.5, 1.0, 2.0), (2.0, 1.0, 4.0)], strict=True)
    ]

    mixed = mix_targets(parts, torch.full((NUM_TOKENS, 3), 1 / 3))

    assert mixed.temperatures == (1.0, 2.0)
    assert mixed.tail_lse.shape == (NUM_TOKENS, 2)


def test_caches_that_do_not_reach_temperature_one_are_refused(logits: Logits, gold: Ids) -> None:
    part = TeacherTargets.from_logits(
        torch.from_numpy(logits[0]), torch.from_numpy(gold), top_k=5, temperatures=(2.0, 4.0)
    )

    with pytest.raises(MismatchError, match=r"do not reach \(1: 2, 4; 2: 2, 4\)"):
        mix_targets([part, part], torch.full((NUM_TOKENS, 2), 0.5))


def test_no_tokens_are_mixed_to_no_tokens() -> None:
    part = TeacherTargets.from_logits(
        torch.zeros(0, VOCABULARY_SIZE), torch.zeros(0, dtype=torch.int64), top_k=4, num_samples=2
    )

    mixed = mix_targets([part, part], torch.zeros(0, 2))

    assert mixed.num_tokens == 0
    assert mixed.num_samples == 2

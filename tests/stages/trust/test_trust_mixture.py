"""The likelihood from its formula, folds that are really left out, and planted worlds recovered."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.stages.trust.worlds import SETTINGS, planted

from betakd_stages.trust.evidence import Evidence
from betakd_stages.trust.groups import Groups
from betakd_stages.trust.mixture import (
    BATCH_SIZE,
    GROUP_LEARNING_RATE,
    HIDDEN_SIZE,
    LEARNING_RATE,
    LEAST_STEPS,
    cross_fitted,
    log_likelihood,
    log_shares,
)
from betakd_stages.trust.scores import score_groups, trust_of

NUM_SAMPLES = 1600


def fitted(evidence: Evidence, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """pi and s `[S]`."""
    folds = np.random.default_rng(5).integers(0, SETTINGS.num_folds, len(evidence.margin))
    pi = cross_fitted(evidence, groups, folds, SETTINGS)[:, 0]
    return pi, trust_of(pi, groups, score_groups(pi, evidence, groups))


def test_the_likelihood_is_the_formula_in_float64() -> None:
    generator = np.random.default_rng(0)
    logits, p = generator.normal(size=(6, 2)), generator.random((6, 3, 4))
    held = np.array([[True, True], [True, False], [False, True]] * 2)
    scores = np.where(held, np.exp(logits), 0)
    pi = np.column_stack([scores, np.ones(6)]) / (1 + scores.sum(axis=1, keepdims=True))
    expected = np.log(np.einsum("st,stl->sl", pi, p)).sum(axis=1)
    found = log_likelihood(log_shares(torch.tensor(logits), torch.tensor(held)), torch.tensor(p).log())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_likelihood_is_finite_where_the_teacher_rules_the_label_out() -> None:
    logits = torch.tensor([[40.0, 1.0], [-200.0, 1.0]], requires_grad=True)
    sources = torch.tensor([-500.0, -500.0, -2.0])[None, :, None].expand(2, 3, 1)
    found = log_likelihood(log_shares(logits, torch.tensor([[True, False], [True, True]])), sources)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def fitted_by_a_sigmoid(evidence: Evidence, groups: Groups, folds: np.ndarray) -> np.ndarray:
    """pi `[S]` of one teacher, by a sigmoid between it and the background, as for a single teacher by definition."""
    inputs = (evidence.inputs - evidence.inputs.mean(axis=0)) / evidence.inputs.std(axis=0)
    x, c = torch.from_numpy(inputs), torch.from_numpy(groups.of_sample).long()
    p, b = torch.from_numpy(evidence.teachers[:, 0]), torch.from_numpy(evidence.background)
    pi = np.zeros(len(inputs))
    for fold in range(SETTINGS.num_folds):
        generator = torch.Generator().manual_seed(SETTINGS.seed * 1_000_003 + fold * 1009)
        bound = inputs.shape[1] ** -0.5
        first = torch.empty(HIDDEN_SIZE, inputs.shape[1]).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(HIDDEN_SIZE).uniform_(-bound, bound, generator=generator)
        of_group, last = torch.zeros(len(groups.names)), torch.zeros(HIDDEN_SIZE)
        weights = [tensor.requires_grad_() for tensor in (of_group, first, bias, last)]
        decay = {"params": weights[1:], "lr": LEARNING_RATE, "weight_decay": SETTINGS.weight_decay}
        group = {"params": weights[:1], "lr": GROUP_LEARNING_RATE, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([group, decay])
        seen, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        for _ in range(LEAST_STEPS):
            places = seen[torch.randint(len(seen), (BATCH_SIZE,), generator=generator).numpy()]
            share = torch.sigmoid(of_group[c[places]] + torch.tanh(x[places] @ first.T + bias) @ last)[:, None]
            loss = -(share * p[places].exp() + (1 - share) * b[places].exp()).log().sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = of_group[c[held_out]] + torch.tanh(x[held_out] @ first.T + bias) @ last
        pi[held_out] = torch.sigmoid(logits).numpy()
    return pi


def test_one_teacher_is_a_sigmoid_between_it_and_the_background() -> None:
    evidence, groups = planted(900, [0.9, 0.3])
    folds = np.arange(900) % SETTINGS.num_folds
    found = cross_fitted(evidence, groups, folds, SETTINGS)[:, 0]
    np.testing.assert_allclose(found, fitted_by_a_sigmoid(evidence, groups, folds), atol=1e-4)
    assert found.std() > 0.2


def test_an_answer_of_one_token_gives_the_one_token_rule_and_predictable_tokens_change_nothing() -> None:
    short, groups = planted(NUM_SAMPLES, [0.9, 0.2])
    long, _ = planted(NUM_SAMPLES, [0.9, 0.2], content_at=3)
    (pi, trust), (pi_long, trust_long) = fitted(short, groups), fitted(long, groups)
    np.testing.assert_allclose(pi_long, pi, atol=0.03)
    np.testing.assert_allclose(trust_long, trust, atol=0.1)


def test_a_sample_is_judged_by_networks_that_never_saw_its_label() -> None:
    """Turning the labels of one fold around changes what is thought of all other folds, and nothing in that fold."""
    evidence, groups = planted(400, [0.9])
    folds = np.arange(400) % SETTINGS.num_folds
    contrary = np.where((folds == 2)[:, None, None], -5 - evidence.teachers, evidence.teachers)
    turned = dataclasses.replace(evidence, teachers=contrary.astype(np.float32))
    before = cross_fitted(evidence, groups, folds, SETTINGS)
    after = cross_fitted(turned, groups, folds, SETTINGS)
    np.testing.assert_array_equal(before[folds == 2], after[folds == 2])
    assert (np.abs(before - after)[folds != 2] > 0.01).mean() > 0.9


def test_a_teacher_that_is_wrong_on_one_group_is_believed_on_the_other_alone() -> None:
    evidence, groups = planted(NUM_SAMPLES, [0.95, 0.1])
    _, trust = fitted(evidence, groups)
    assert trust[groups.of_sample == 0].mean() > 0.9
    assert (trust[groups.of_sample == 1] == 0).all()


def test_uniform_label_noise_lowers_pi_but_not_the_trust() -> None:
    clean, groups = planted(NUM_SAMPLES, [0.95], noise=0.0)
    noisy, _ = planted(NUM_SAMPLES, [0.95], noise=0.4)
    (pi_clean, trust_clean), (pi_noisy, trust_noisy) = fitted(clean, groups), fitted(noisy, groups)
    assert pi_noisy.mean() < pi_clean.mean() - 0.25
    assert trust_noisy.mean() == pytest.approx(trust_clean.mean(), abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_teacher_is_not_believed_at_all(seed: int) -> None:
    evidence, groups = planted(NUM_SAMPLES, [1 / 8, 1 / 8, 1 / 8, 1 / 8], seed=seed)
    _, trust = fitted(evidence, groups)
    assert (trust == 0).all()

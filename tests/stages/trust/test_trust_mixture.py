"""The likelihood from its formula, folds that are really left out, and planted worlds recovered."""

import numpy as np
import pytest
import torch
from tests.stages.trust.worlds import SETTINGS, planted

from betakd_stages.trust.evidence import Evidence
from betakd_stages.trust.groups import Groups
from betakd_stages.trust.mixture import cross_fitted, log_likelihood
from betakd_stages.trust.scores import score_groups, trust_of

NUM_SAMPLES = 1600


def fitted(evidence: Evidence, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """pi and s `[S]`."""
    folds = np.random.default_rng(5).integers(0, SETTINGS.num_folds, len(evidence.margin))
    pi = cross_fitted(evidence, groups, folds, SETTINGS)
    return pi, trust_of(pi, groups, score_groups(pi, evidence, groups))


def test_the_likelihood_is_the_formula_in_float64() -> None:
    generator = np.random.default_rng(0)
    logits, p, b = generator.normal(size=6), generator.random((6, 3)), generator.random((6, 3))
    pi = 1 / (1 + np.exp(-logits))
    expected = np.log(pi[:, None] * p + (1 - pi[:, None]) * b).sum(axis=1)
    found = log_likelihood(torch.tensor(logits), torch.tensor(p).log(), torch.tensor(b).log())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_likelihood_is_finite_where_the_teacher_rules_the_label_out() -> None:
    logits = torch.tensor([40.0, -200.0], requires_grad=True)
    found = log_likelihood(logits, torch.full((2, 1), -500.0), torch.full((2, 1), -2.0))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


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
    turned = Evidence(
        evidence.inputs,
        np.where((folds == 2)[:, None], -5 - evidence.teacher, evidence.teacher).astype(np.float32),
        evidence.background,
        evidence.margin,
        evidence.gap,
    )
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

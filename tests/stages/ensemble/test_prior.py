"""The mixture of Gibbs priors against its formula in NumPy."""

import numpy as np
import torch

from betakd_stages.ensemble.prior import gibbs_mixture

NUM_SAMPLES, NUM_TEACHERS = 5, 3
OWNERS = np.array([0, 1, 2, 0, 2])


def test_it_is_minus_the_log_of_the_mixture_of_exponentials() -> None:
    generator = np.random.default_rng(0)
    beta, energy = generator.uniform(0.2, 3.0, (2, NUM_SAMPLES, len(OWNERS)))
    dimension = 1.7
    weights = generator.dirichlet(np.ones(NUM_TEACHERS), NUM_SAMPLES)
    weights[0] = [0.0, 1.0, 0.0]

    value, shares = gibbs_mixture(
        torch.from_numpy(beta * energy - dimension / 2 * np.log(beta)),
        torch.from_numpy(OWNERS),
        torch.from_numpy(weights),
    )

    priors = np.ones((NUM_SAMPLES, NUM_TEACHERS))
    for channel, owner in enumerate(OWNERS):
        priors[:, owner] *= beta[:, channel] ** (dimension / 2) * np.exp(-beta[:, channel] * energy[:, channel])
    mixture = weights * priors
    np.testing.assert_allclose(value, -np.log(mixture.sum(axis=1)), atol=1e-12)
    np.testing.assert_allclose(shares, mixture / mixture.sum(axis=1, keepdims=True), atol=1e-12)


def test_one_teacher_gives_the_sum_of_its_terms() -> None:
    terms = torch.randn(4, 2, dtype=torch.float64)

    value, shares = gibbs_mixture(terms, torch.zeros(2, dtype=torch.int64), torch.ones(4, 1))

    torch.testing.assert_close(value, terms.sum(dim=1), atol=1e-12, rtol=0)
    assert (shares == 1).all()


def test_an_energy_is_weighed_by_beta_and_the_responsibility_of_its_teacher() -> None:
    energy = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    weights = torch.full((4, 3), 1 / 3)

    value, shares = gibbs_mixture(beta * energy - 0.5 * beta.log(), torch.arange(3), weights)
    (gradient,) = torch.autograd.grad(value.sum(), energy)

    torch.testing.assert_close(gradient, beta * shares, atol=1e-12, rtol=0)


def test_a_teacher_of_weight_zero_has_no_part_whatever_its_terms() -> None:
    terms = torch.tensor([[0.0, 5.0]], dtype=torch.float64, requires_grad=True)

    value, shares = gibbs_mixture(terms, torch.arange(2), torch.tensor([[0.0, 1.0]]))
    (gradient,) = torch.autograd.grad(value.sum(), terms)

    assert value.tolist() == [5.0]
    assert shares.tolist() == [[0.0, 1.0]]
    assert gradient.tolist() == [[0.0, 1.0]]


def test_a_sample_without_any_weight_stays_finite() -> None:
    terms = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)

    value, shares = gibbs_mixture(terms, torch.arange(2), torch.zeros(1, 2))
    (gradient,) = torch.autograd.grad(value.sum(), terms)

    assert torch.isfinite(value).all()
    assert torch.isfinite(shares).all()
    assert torch.isfinite(gradient).all()

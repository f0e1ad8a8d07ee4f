"""Snapshots of a problem whose posterior is known: Bayesian linear regression, with the covariance in closed form.

An nn.Linear of S outputs is S regressions with one design: S chances to be wrong at the price of one.
N samples, D weights of each regression, K snapshots, R draws, P test points.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import nn

from betakd_stages.posterior.langevin import snapshots
from betakd_stages.posterior.snapshot_files import shares_of_draw
from betakd_stages.settings.posterior import PosteriorSettings

Array = NDArray[np.float64]
NUM_SAMPLES, NUM_WEIGHTS, NUM_REGRESSIONS, NUM_DRAWS = 200, 6, 24, 300
NOISE, PRIOR = 0.5, 0.3
SETTINGS = PosteriorSettings(count=80, every_steps=40, learning_rate=0.03, prior_deviation=PRIOR)


@dataclass(frozen=True, slots=True)
class Regressions:
    """A design `[N, D]` of correlated columns, targets `[N, S]`, their best weights `[S, D]`, test points `[P, D]`."""

    design: Array
    targets: Array
    best: Array
    points: Array

    def covariance(self) -> Array:
        """The posterior's `[D, D]`, of each regression: the prior is around the best weights, so they are its mean."""
        precision = self.design.T @ self.design / NOISE**2 + np.eye(NUM_WEIGHTS) / PRIOR**2
        return np.asarray(np.linalg.inv(precision), dtype=np.float64)

    def model(self) -> nn.Linear:
        """The weights that training ends with."""
        model = nn.Linear(NUM_WEIGHTS, NUM_REGRESSIONS, bias=False).double()
        model.weight.data = torch.tensor(self.best)  # a copy: it will move
        return model


@pytest.fixture(scope="module")
def problem() -> Regressions:
    generator = np.random.default_rng(0)
    places = np.arange(NUM_WEIGHTS)
    correlations = 0.6 ** np.abs(places[:, None] - places)
    design, points = (generator.multivariate_normal(0 * places, correlations, n) for n in (NUM_SAMPLES, 30))
    weights = generator.normal(size=(NUM_REGRESSIONS, NUM_WEIGHTS))
    targets = design @ weights.T + NOISE * generator.normal(size=(NUM_SAMPLES, NUM_REGRESSIONS))
    best = np.ascontiguousarray(np.linalg.lstsq(design, targets, rcond=None)[0].T)
    return Regressions(design, targets, best, points)


def gradients_of(
    problem: Regressions, model: nn.Linear, settings: PosteriorSettings
) -> Callable[[int], Iterator[float]]:
    """The mean objective of batches of half the samples: the negative log likelihood, constants left out."""
    design, targets = torch.from_numpy(problem.design), torch.from_numpy(problem.targets)

    def gradients(seed: int) -> Iterator[float]:
        generator = np.random.default_rng(seed)
        for _ in range(settings.every_steps):
            rows = torch.from_numpy(generator.permutation(NUM_SAMPLES)[: NUM_SAMPLES // 2])
            loss = (model(design[rows]) - targets[rows]).square().mean(dim=0).sum() / (2 * NOISE**2)
            loss.backward()
            yield loss.item()

    return gradients


def sampled(problem: Regressions, settings: PosteriorSettings, seed: int = 0) -> Array:
    """The snapshots `[K, S, D]`."""
    model = problem.model()
    parameters = list(model.parameters())
    centre = [parameter.detach().clone() for parameter in parameters]
    gradients = gradients_of(problem, model, settings)
    taken = snapshots(parameters, centre, gradients, settings, num_samples=NUM_SAMPLES, seed=seed)
    return np.stack([model.weight.detach().numpy().copy() for _ in taken])


@pytest.fixture(scope="module")
def weights(problem: Regressions) -> Array:
    return sampled(problem, SETTINGS)


def test_credible_intervals_of_predictions_hold_the_stated_mass_of_the_exact_posterior(
    problem: Regressions, weights: Array
) -> None:
    shares = np.stack([shares_of_draw(len(weights), 0, draw) for draw in range(NUM_DRAWS)])
    predictions = np.einsum("rk,ksd,pd->rsp", shares, weights, problem.points)
    exact = problem.best @ problem.points.T
    deviation = np.sqrt(np.einsum("pd,de,pe->p", problem.points, problem.covariance(), problem.points))
    for level, tolerance in ((0.5, 0.04), (0.9, 0.03)):
        low, high = np.quantile(predictions, [(1 - level) / 2, (1 + level) / 2], axis=0)
        held = norm.cdf((high - exact) / deviation) - norm.cdf((low - exact) / deviation)
        assert abs(held.mean() - level) < tolerance


def test_snapshots_have_the_posteriors_mean_and_whole_covariance(problem: Regressions, weights: Array) -> None:
    exact = problem.covariance()
    centred = weights - weights.mean(axis=0)
    found = np.einsum("ksd,kse->de", centred, centred) / (len(weights) - 1) / NUM_REGRESSIONS
    deviations = np.sqrt(np.diag(exact))
    np.testing.assert_allclose(np.diag(found), np.diag(exact), rtol=0.2)
    np.testing.assert_allclose(
        found / np.outer(deviations, deviations), exact / np.outer(deviations, deviations), atol=0.2
    )
    # Neighbouring columns are alike, so their weights must make up for each other: far from what a diagonal says.
    assert (found[0, 1] / np.sqrt(found[0, 0] * found[1, 1])) < -0.3
    assert np.abs(weights.mean(axis=0) - problem.best).mean() < 0.3 * deviations.mean()


def test_the_variance_goes_with_the_temperature_and_is_the_learning_rates_without_noise(problem: Regressions) -> None:
    spreads = {}
    for temperature in (0.0, 0.25):
        settings = SETTINGS.model_copy(update={"temperature": temperature, "count": 30})
        variance = sampled(problem, settings).var(axis=0, ddof=1).mean(axis=0)
        spreads[temperature] = float((variance / np.diag(problem.covariance())).mean())
    assert spreads[0.25] == pytest.approx(0.25 + spreads[0.0], abs=0.1)
    assert spreads[0.0] < 0.15


def test_a_flat_objective_gives_the_prior_and_nothing_else() -> None:
    settings = PosteriorSettings(count=400, every_steps=10, learning_rate=0.5, prior_deviation=0.2, temperature=0.5)
    parameter = nn.Parameter(torch.full((50,), 3.0))

    def flat(seed: int) -> Iterator[float]:
        yield from [0.0] * settings.every_steps

    taken = snapshots([parameter], [torch.full((50,), 3.0)], flat, settings, num_samples=60, seed=1)
    found = np.stack([parameter.detach().numpy().copy() for _ in taken])[10:]
    assert found.mean() == pytest.approx(3.0, abs=0.01)
    assert found.var() == pytest.approx(0.5 * 0.2**2, rel=0.15)


def test_going_on_behind_some_snapshots_gives_the_same_as_never_having_stopped(problem: Regressions) -> None:
    settings = SETTINGS.model_copy(update={"count": 4, "every_steps": 5})
    whole = sampled(problem, settings, seed=3)
    model = problem.model()
    centre = [parameter.detach().clone() for parameter in model.parameters()]
    model.weight.data = torch.from_numpy(whole[1].copy())
    rest = snapshots(
        *(list(model.parameters()), centre, gradients_of(problem, model, settings), settings),
        num_samples=NUM_SAMPLES,
        seed=3,
        num_done=2,
    )
    found = np.stack([model.weight.detach().numpy().copy() for _ in rest])
    np.testing.assert_array_equal(found, whole[2:])
    assert np.abs(sampled(problem, settings, seed=4) - whole).max() > 1e-3


def test_a_draws_shares_have_the_snapshots_mean_and_covariance() -> None:
    shares = np.stack([shares_of_draw(5, 7, draw) for draw in range(20_000)])
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-12)
    values = np.random.default_rng(0).normal(size=5)
    drawn = shares @ values
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)
    assert drawn.var() == pytest.approx(values.var(ddof=1), rel=0.05)
    np.testing.assert_array_equal(shares_of_draw(5, 7, 3), shares[3])

"""Sampling by keyed Gumbel noise: draws have the softmax's frequencies and depend on nothing but what is sampled."""

import math

import numpy as np
import pytest
import torch

from betakd_stages.settings.teacher import GenerationSettings
from betakd_stages.teachers.sampling import KeyedSampling, gumbel_noise

NO_IDS = torch.zeros(0, 0, dtype=torch.int64)
SPLITMIX64 = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
"""The published first numbers of the stream of seed 1234567."""


def generation(**changes: object) -> GenerationSettings:
    return GenerationSettings.model_validate({"temperature": 1.0, **changes})


def draws(logits: list[float], num_draws: int, **changes: object) -> np.ndarray:
    """Draws [num_draws] from one distribution, each under a key of its own."""
    sampling = KeyedSampling(generation(**changes), [f"sample-{number}/0" for number in range(num_draws)])
    return sampling(NO_IDS, torch.tensor(logits).expand(num_draws, -1)).argmax(dim=1).numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def chi_square(found: np.ndarray, probabilities: np.ndarray) -> float:
    counts = np.bincount(found, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    held = probabilities > 0
    expected = len(found) * probabilities[held]
    return float(((counts[held] - expected) ** 2 / expected).sum())


def test_the_noise_is_the_published_streams() -> None:
    expected = [-math.log(-math.log((number // 2**12 + 0.5) / 2**52)) for number in SPLITMIX64]
    noise = gumbel_noise(torch.tensor([1234567, -5]), 5)
    np.testing.assert_allclose(noise[0], expected, rtol=1e-13)
    assert noise.dtype == torch.float64
    assert not set(noise[0].tolist()) & set(noise[1].tolist())


def test_noise_is_finite_standard_gumbel() -> None:
    noise = np.sort(gumbel_noise(torch.arange(20), 5000).flatten().numpy())
    assert np.isfinite(noise).all()
    distance = np.abs(np.exp(-np.exp(-noise)) - (np.arange(100_000) + 0.5) / 100_000).max()
    assert distance < 1.63 / math.sqrt(100_000)  # Kolmogorov-Smirnov at 1 %


LOGITS = [1.5, 0.0, -1.0, 2.0, 0.5, -3.0, 1.0, -0.5]
CHI_SQUARE_7 = 24.3  # exceeded by chance once in a thousand


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_have_the_frequencies_of_the_softmax_at_the_temperature(temperature: float) -> None:
    found = draws(LOGITS, 20_000, temperature=temperature)
    assert chi_square(found, softmax(np.array(LOGITS) / temperature)) < CHI_SQUARE_7


def test_top_p_draws_from_the_likeliest_tokens_that_reach_it_at_the_temperature() -> None:
    probabilities = softmax(np.array(LOGITS) / 2.0)
    order = np.argsort(-probabilities)
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), 0.8)) + 1]
    assert 1 < len(kept) < len(LOGITS)
    expected = np.zeros(len(LOGITS))
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert chi_square(draws(LOGITS, 20_000, temperature=2.0, top_p=0.8), expected) < CHI_SQUARE_7


def test_consecutive_steps_and_neighbouring_keys_are_independent() -> None:
    """Over pairs of draws, the 64 outcomes have the products of the probabilities."""
    sampling = KeyedSampling(generation(), [f"sample/{turn}" for turn in range(20_000)])
    logits = torch.tensor(LOGITS).expand(20_000, -1)
    first, second = (sampling(NO_IDS, logits).argmax(dim=1).numpy() for _ in range(2))
    pairs = softmax(np.array(LOGITS))[:, None] * softmax(np.array(LOGITS))
    assert chi_square(8 * first + second, pairs.flatten()) < 103.4  # of 63 degrees of freedom, one in a thousand
    assert chi_square(8 * first[1:] + first[:-1], pairs.flatten()) < 103.4


def test_a_draw_depends_on_seed_and_key_and_not_on_its_neighbours() -> None:
    logits = torch.tensor(LOGITS).expand(3, -1)
    together = KeyedSampling(generation(seed=7), ["a/0", "b/0", "c/1"])
    alone = KeyedSampling(generation(seed=7), ["c/1"])
    for _ in range(3):
        assert torch.equal(together(NO_IDS, logits)[2], alone(NO_IDS, logits[:1])[0])
    for other in (KeyedSampling(generation(seed=8), ["c/1"]), KeyedSampling(generation(seed=7), ["c/0"])):
        assert not torch.equal(
            other(NO_IDS, logits[:1]), KeyedSampling(generation(seed=7), ["c/1"])(NO_IDS, logits[:1])
        )

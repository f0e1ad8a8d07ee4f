"""What the targets keep of full logits, and what they derive from it."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import VOCABULARY, Batch, kept_ids

from betakd_stages.errors import MismatchError
from betakd_stages.targets import DEVICE_CHUNK_ELEMENTS, TeacherTargets

GRID = (2.0, 0.5, 1.0, 4.0)
KEEPING: list[dict[str, Any]] = [
    {},
    {"top_k": 8},
    {"top_k": 1},
    {"top_p": 0.8},
    {"top_k": 10, "top_p": 0.9, "top_p_temperature": 2.0},
]


@pytest.mark.parametrize("keeping", KEEPING, ids=str)
def test_kept_and_tail_together_are_the_whole_distribution(batch: Batch, keeping: dict[str, Any]) -> None:
    targets = batch.targets(GRID, **keeping)
    for temperature in (*GRID, 1.3, 0.7):
        kept = targets.log_probabilities(temperature).exp().sum(dim=1)
        rest = targets.tail_log_probability(temperature).exp()
        torch.testing.assert_close(kept + rest, torch.ones_like(kept), rtol=0, atol=1e-12)
        assert bool((rest > 0).all()) == bool(keeping)


@pytest.mark.parametrize("keeping", KEEPING, ids=str)
@pytest.mark.parametrize("temperature", GRID)
def test_every_derived_number_agrees_with_the_full_logits(
    batch: Batch, keeping: dict[str, Any], temperature: float
) -> None:
    targets = batch.targets(GRID, **keeping)
    for token, logits in enumerate(batch.teacher_logits.numpy()):
        kept = kept_ids(targets, token)
        tail = np.setdiff1d(np.arange(VOCABULARY), kept)
        log_p = oracles.log_softmax(logits, temperature)
        found = targets.log_probabilities(temperature)[token][targets.kept[token]].numpy()
        np.testing.assert_allclose(found, log_p[kept], atol=1e-12)
        np.testing.assert_allclose(targets.gold_log_probability(temperature)[token], log_p[batch.gold_ids[token]])
        np.testing.assert_allclose(targets.entropy(temperature)[token], oracles.entropy(logits, temperature))
        np.testing.assert_allclose(targets.largest_probability(temperature)[token], np.exp(log_p.max()))
        tail_lse = oracles.logsumexp((logits[tail] - logits.max()) / temperature)
        np.testing.assert_allclose(targets.tail_lse_at(temperature)[token], tail_lse, atol=1e-12)
        energy = oracles.softmax(logits[tail], temperature) @ (logits.max() - logits[tail]) if len(tail) else 0.0
        np.testing.assert_allclose(targets.tail_energy_at(temperature)[token], energy, atol=1e-12)


def test_moments_are_those_of_the_logits_themselves(batch: Batch) -> None:
    targets = batch.targets(top_k=4)
    assert targets.logit_max is not None
    assert targets.logit_mean is not None
    assert targets.logit_std is not None
    logits = batch.teacher_logits.numpy()
    np.testing.assert_allclose(targets.logit_max, logits.max(axis=1))
    np.testing.assert_allclose(targets.logit_mean, logits.mean(axis=1))
    np.testing.assert_allclose(targets.logit_std, logits.std(axis=1))


@pytest.mark.parametrize("keeping", KEEPING, ids=str)
def test_the_largest_entries_and_the_gold_one_are_kept_in_order(batch: Batch, keeping: dict[str, Any]) -> None:
    targets = batch.targets(**keeping)
    for token, logits in enumerate(batch.teacher_logits.numpy()):
        kept, gold = kept_ids(targets, token), int(batch.gold_ids[token])
        temperature = float(keeping.get("top_p_temperature", 1.0))
        probabilities = np.sort(oracles.softmax(logits, temperature))[::-1]
        num_wanted = int((np.cumsum(probabilities) - probabilities < keeping.get("top_p", 2.0)).sum())
        most = int(keeping.get("top_k", VOCABULARY))
        largest = np.argsort(-logits)[: min(num_wanted, most)]
        expected = largest if gold in largest else np.append(largest[: most - 1], gold)
        assert kept.tolist() == expected.tolist()
        assert len(set(kept.tolist())) == len(kept) <= most


def test_padding_stands_behind_the_kept_entries_and_holds_no_number(batch: Batch) -> None:
    targets = batch.targets(top_p=0.8)
    assert not bool(targets.kept.all())
    assert targets.ids.shape[1] == int(targets.kept.sum(dim=1).max())
    assert bool((targets.kept[:, :-1] >= targets.kept[:, 1:]).all())
    assert bool((targets.logits[~targets.kept] == -torch.inf).all())


def test_rows_in_chunks_give_the_same_targets(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batch.targets(GRID, top_p=0.8)
    monkeypatch.setitem(DEVICE_CHUNK_ELEMENTS, "cpu", 2 * VOCABULARY)
    chunked = batch.targets(GRID, top_p=0.8)
    for name in ("ids", "kept", "logits", "gold_logit", "tail_lse", "tail_energy", "logit_mean"):
        assert torch.equal(getattr(whole, name), getattr(chunked, name)), name


def test_no_tokens_give_empty_targets() -> None:
    targets = TeacherTargets.from_logits(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64), top_k=3)
    assert targets.ids.shape == (0, 3)
    assert targets.entropy().shape == (0,)
    assert targets.num_samples == 0


def test_the_margin_is_the_difference_of_the_two_largest_probabilities(batch: Batch) -> None:
    for top_k in (None, 3):
        margin = batch.targets(top_k=top_k).margin().numpy()
        for token, logits in enumerate(batch.teacher_logits.numpy()):
            largest = np.sort(oracles.softmax(logits))[::-1]
            np.testing.assert_allclose(margin[token], largest[0] - largest[1], atol=1e-12)


def test_the_margin_of_a_single_kept_entry_is_never_too_large(batch: Batch) -> None:
    exact, single = batch.targets().margin(), batch.targets(top_k=1).margin()
    assert bool((single <= exact + 1e-12).all())
    assert bool((single >= 0).all())


def test_the_tail_between_grid_points_is_close_and_exact_in_its_slope(batch: Batch) -> None:
    held, truth = batch.targets((1.0, 2.0), top_k=5), batch.targets((1.4,), top_k=5)
    between, exact = held.tail_lse_at(1.4), truth.tail_lse_at(1.4)
    assert bool(((between.exp() - exact.exp()).abs() / exact.exp() < 0.02).all())
    temperature = torch.full_like(between, 1.4, requires_grad=True)
    held.tail_lse_at(temperature).sum().backward()
    assert temperature.grad is not None
    slope = held.tail_energy_at(1.4) / 1.4**2
    torch.testing.assert_close(temperature.grad, slope)


def test_a_temperature_of_each_token_meets_the_numbers_of_the_grid(batch: Batch) -> None:
    targets = batch.targets(GRID, top_k=5)
    temperatures = torch.tensor([2.0, 0.5, 1.0, 4.0, 1.0, 2.0], dtype=torch.float64)
    found = targets.tail_lse_at(temperatures)
    for token, temperature in enumerate(temperatures.tolist()):
        torch.testing.assert_close(found[token], targets.tail_lse_at(temperature)[token])


@pytest.mark.parametrize("temperature", [0.9, 2.1, torch.tensor([1.0, 1.0, 3.0, 1.0, 1.0, 1.0])])
def test_a_temperature_outside_the_grid_is_an_error_that_names_those_held(batch: Batch, temperature: float) -> None:
    with pytest.raises(MismatchError, match=r"the cache holds 1, 2: choose one between"):
        batch.targets((2.0, 1.0), top_k=5).tail_lse_at(temperature)


def test_bfloat16_logits_are_reduced_in_float32(batch: Batch) -> None:
    logits = batch.teacher_logits.to(torch.bfloat16)
    targets = TeacherTargets.from_logits(logits, batch.gold_ids, top_k=5)
    reference = TeacherTargets.from_logits(logits.double(), batch.gold_ids, top_k=5)
    assert targets.tail_lse.dtype == torch.float32
    torch.testing.assert_close(targets.tail_lse.double(), reference.tail_lse, rtol=1e-6, atol=1e-6)

"""Every energy against float64 oracles that hold the whole vocabulary, in value and gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import Batch, kept_ids, make_batch

from betakd_stages.energies import ENERGIES, make_energy
from betakd_stages.errors import ConfigError
from betakd_stages.statistics import Head, student_statistics

KEEPING: list[dict[str, Any]] = [{}, {"top_k": 8}, {"top_p": 0.8}]


@pytest.mark.parametrize("name", oracles.DISTRIBUTION_ENERGIES)
@pytest.mark.parametrize("keeping", KEEPING, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_energy_and_its_gradient_agree_with_the_whole_vocabulary(
    name: str, keeping: dict[str, Any], temperature: float
) -> None:
    batch = make_batch(1, num_tokens=3)
    targets = batch.targets((1.0, 2.0), **keeping)
    energy = make_energy(name, temperature=temperature)
    logits = (batch.hidden @ batch.weight.T).requires_grad_()
    statistics = student_statistics(logits, Head(torch.eye(logits.shape[1]).double()), targets, energy.needs(targets))
    values = energy(statistics, targets)
    values.sum().backward()
    assert logits.grad is not None
    formula = oracles.DISTRIBUTION_ENERGIES[name]
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        kept = kept_ids(targets, token)

        def oracle(student: oracles.Array, teacher: oracles.Array = teacher, kept: np.ndarray = kept) -> float:
            return oracles.sparse_energy(formula, teacher, student, kept, temperature)

        student = logits[token].detach().numpy()
        np.testing.assert_allclose(values[token].detach(), oracle(student), rtol=1e-12, atol=1e-13)
        gradient = oracles.numerical_gradient(oracle, student)
        np.testing.assert_allclose(logits.grad[token], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ENERGIES)
def test_unknown_settings_of_an_energy_are_errors_that_list_the_valid_ones(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"energy '{name}' has no setting 'temprature': its settings are .*temperature"
    ):
        make_energy(name, temprature=2.0)


def test_unknown_energies_and_semantics_are_errors_that_list_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown energy 'forward_kl': choose one of .*cosine_probs.*fkl"):
        make_energy("forward_kl")
    with pytest.raises(ConfigError, match=r"unknown semantics 'papers': choose one of paper, reference"):
        make_energy("fkl", semantics="papers")


def test_forward_kl_with_the_teachers_entropy_is_the_cross_entropy(batch: Batch) -> None:
    energy = make_energy("fkl", semantics="reference")
    targets = batch.targets()
    values = energy(batch.statistics(targets, energy.needs(targets)), targets)
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        expected = -oracles.softmax(teacher) @ oracles.log_softmax(batch.student_logits[token])
        np.testing.assert_allclose(values[token], expected)


def test_cosine_with_the_teachers_entropy_is_the_expected_cosine_distance_to_a_drawn_token(batch: Batch) -> None:
    energy = make_energy("cosine_probs", include_teacher_entropy=True)
    targets = batch.targets()
    values = energy(batch.statistics(targets, energy.needs(targets)), targets)
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        p, q = oracles.softmax(teacher), oracles.softmax(batch.student_logits[token])
        drawn = [oracles.cosine_distance(one_hot, q) for one_hot in np.eye(len(p))]
        np.testing.assert_allclose(values[token], p @ np.array(drawn))


def test_the_confidence_gate_multiplies_by_a_power_of_the_margin(batch: Batch) -> None:
    targets = batch.targets(top_k=5)
    plain, gated = make_energy("fkl"), make_energy("fkl", confidence_gate=2.0)
    statistics = batch.statistics(targets)
    torch.testing.assert_close(gated(statistics, targets), plain(statistics, targets) * targets.margin() ** 2)
    with pytest.raises(ConfigError, match=r"confidence_gate is -1: give a power of 0 \(no gate\) or more"):
        make_energy("fkl", confidence_gate=-1)


def test_the_two_temperatures_may_differ_and_their_product_may_scale(batch: Batch) -> None:
    energy = make_energy("fkl", teacher_temperature=2.0, student_temperature=1.5, scale_by_squared_temperature=True)
    targets = batch.targets((1.0, 2.0))
    values = energy(batch.statistics(targets, energy.needs(targets)), targets)
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        expected = oracles.kl(oracles.softmax(teacher, 2.0), oracles.softmax(batch.student_logits[token], 1.5))
        np.testing.assert_allclose(values[token], 3.0 * expected)
    with pytest.raises(ConfigError, match=r"temperature is -1: give a number above 0"):
        make_energy("fkl", temperature=-1)

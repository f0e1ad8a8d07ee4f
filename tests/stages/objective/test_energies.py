"""Every energy against float64 oracles that hold the whole vocabulary, in value and gradient."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import VOCABULARY, Batch, kept_ids, make_batch
from torch import Tensor

from betakd_stages.energies import ENERGIES, make_energy
from betakd_stages.errors import ConfigError
from betakd_stages.statistics import Head, student_statistics
from betakd_stages.targets import TeacherTargets

KEEPING: list[dict[str, Any]] = [{}, {"top_k": 8}, {"top_p": 0.8}]


def evaluate(name: str, logits: Tensor, targets: TeacherTargets, **settings: Any) -> tuple[Tensor, Tensor]:
    """Values `[N]` and their gradients `[N, V]` at student logits `[N, V]`."""
    energy = make_energy(name, **settings)
    logits = logits.detach().clone().requires_grad_()
    head = Head(torch.eye(logits.shape[1], dtype=logits.dtype))
    statistics = student_statistics(logits, head, targets, energy.needs(targets))
    values = energy(statistics, targets)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return values.detach(), gradient


@pytest.mark.parametrize("name", oracles.DISTRIBUTION_ENERGIES)
@pytest.mark.parametrize("keeping", KEEPING, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_energy_and_its_gradient_agree_with_the_whole_vocabulary(
    name: str, keeping: dict[str, Any], temperature: float
) -> None:
    batch = make_batch(1, num_tokens=3)
    targets = batch.targets((1.0, 2.0), **keeping)
    values, gradients = evaluate(name, batch.hidden @ batch.weight.T, targets, temperature=temperature)
    formula = oracles.DISTRIBUTION_ENERGIES[name]
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        kept, student, gold = kept_ids(targets, token), batch.student_logits[token], int(batch.gold_ids[token])

        def oracle(
            logits: oracles.Array,
            teacher: oracles.Array = teacher,
            student: oracles.Array = student,
            kept: np.ndarray = kept,
            gold: int = gold,
        ) -> float:
            return formula(oracles.point(teacher, logits, student, kept, gold, temperature))

        np.testing.assert_allclose(values[token], oracle(student), rtol=1e-12, atol=1e-13)
        gradient = oracles.numerical_gradient(oracle, student)
        np.testing.assert_allclose(gradients[token], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", oracles.PUBLISHED_ENERGIES)
def test_reference_semantics_are_what_the_papers_code_computes_of_full_logits(name: str) -> None:
    batch = make_batch(2, num_tokens=3)
    values, gradients = evaluate(name, batch.hidden @ batch.weight.T, batch.targets(), semantics="reference")
    formula = oracles.PUBLISHED_ENERGIES[name]
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        student, gold = batch.student_logits[token], int(batch.gold_ids[token])

        def oracle(
            logits: oracles.Array,
            teacher: oracles.Array = teacher,
            student: oracles.Array = student,
            gold: int = gold,
        ) -> float:
            return formula(teacher, logits, student, gold)

        np.testing.assert_allclose(values[token], oracle(student), rtol=1e-11, atol=1e-13)
        gradient = oracles.numerical_gradient(oracle, student)
        np.testing.assert_allclose(gradients[token], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", oracles.DISTRIBUTION_ENERGIES)
@pytest.mark.parametrize("semantics", ["paper", "reference"])
def test_a_tail_of_one_token_is_as_exact_as_none(name: str, semantics: str) -> None:
    batch = make_batch(8, num_tokens=4)
    logits = batch.hidden @ batch.weight.T
    dense = evaluate(name, logits, batch.targets(), semantics=semantics)
    sparse = evaluate(name, logits, batch.targets(top_k=VOCABULARY - 1), semantics=semantics)
    for found, expected in zip(sparse, dense, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("keeping", KEEPING, ids=str)
def test_an_energy_is_zero_with_zero_gradient_where_the_student_equals_the_teacher(
    name: str, keeping: dict[str, Any]
) -> None:
    batch = make_batch(9)
    targets = batch.targets((1.0, 2.0, 5.0), **keeping)
    values, gradients = evaluate(name, batch.teacher_logits, targets)
    # Only a grid point gives the teacher's tail exactly; the learned temperatures lie between two.
    between = 2e-3 if name.startswith("ctkd") and keeping else 1e-12
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=between)
    # The gradient of |p - q| does not exist at equality.
    if name != "tvd":
        torch.testing.assert_close(gradients, torch.zeros_like(gradients), rtol=0, atol=max(between, 1e-9))


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("keeping", KEEPING, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_energy_is_never_negative_and_positive_away_from_equality(
    name: str, keeping: dict[str, Any], dtype: torch.dtype
) -> None:
    batch = make_batch(10, num_tokens=20)
    targets = batch.targets((1.0, 2.0, 5.0), **keeping)
    for distance in (1e-3, 1.0):
        logits = batch.teacher_logits + distance * (batch.hidden @ batch.weight.T)
        values, _ = evaluate(name, logits.to(dtype), targets)
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert bool((values >= 0).all())
        assert bool((values > 0).all()) or distance < 1


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("semantics", ["paper", "reference"])
def test_bfloat16_students_give_the_energy_of_their_rounded_logits(name: str, semantics: str) -> None:
    batch = make_batch(11)
    targets = batch.targets((0.5, 1.0, 2.0, 5.0), top_k=8)
    rounded = (batch.hidden @ batch.weight.T).bfloat16()
    values, gradients = evaluate(name, rounded, targets, semantics=semantics)
    exact, exact_gradients = evaluate(name, rounded.double(), targets, semantics=semantics)
    torch.testing.assert_close(values.double(), exact, rtol=1e-4, atol=1e-6)
    assert gradients.dtype == torch.bfloat16
    torch.testing.assert_close(gradients.double(), exact_gradients, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("semantics", ["paper", "reference"])
@pytest.mark.parametrize("keeping", [{}, {"top_k": 4}, {"top_p": 0.9}], ids=str)
def test_logits_of_minus_200_leave_every_value_and_gradient_finite(
    name: str, semantics: str, keeping: dict[str, Any]
) -> None:
    batch = make_batch(12)
    generator = torch.Generator().manual_seed(0)
    extreme = [200.0 * (torch.rand(batch.teacher_logits.shape, generator=generator).round() - 1.0) for _ in range(2)]
    targets = TeacherTargets.from_logits(
        extreme[0] + 0.01 * batch.teacher_logits.float(), batch.gold_ids, temperatures=(0.5, 1.0, 2.0, 5.0), **keeping
    )
    for tensor in evaluate(name, extreme[1], targets, semantics=semantics):
        assert bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("name", ENERGIES)
def test_no_supervised_token_gives_no_value_and_no_error(name: str) -> None:
    batch = make_batch(13)
    targets = TeacherTargets.from_logits(
        batch.teacher_logits[:0], batch.gold_ids[:0], top_k=4, temperatures=(0.5, 1.0, 5.0)
    )
    without_width = replace(targets, ids=targets.ids[:, :0], kept=targets.kept[:, :0], logits=targets.logits[:, :0])
    for empty in (targets, without_width):
        values, gradients = evaluate(name, batch.teacher_logits[:0], empty)
        assert values.shape == (0,)
        assert gradients.shape == (0, VOCABULARY)


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
    energy = make_energy("fkl", teacher_temperature=2.0, student_temperature=1.5, temperature_power=2.0)
    targets = batch.targets((1.0, 2.0))
    values = energy(batch.statistics(targets, energy.needs(targets)), targets)
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        expected = oracles.kl(oracles.softmax(teacher, 2.0), oracles.softmax(batch.student_logits[token], 1.5))
        np.testing.assert_allclose(values[token], 3.0 * expected)
    with pytest.raises(ConfigError, match=r"temperature is -1: give a number above 0"):
        make_energy("fkl", temperature=-1)

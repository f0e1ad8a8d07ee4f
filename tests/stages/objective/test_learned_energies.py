"""Energies with state or parameters: TAID's schedule, CTKD's temperature and its reversed gradient; limits of
alpha-beta; and what the settings refuse."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import Batch, kept_ids
from torch import Tensor

from betakd_stages.energies import Energy, make_energy
from betakd_stages.energies.curriculum import CurriculumTemperature
from betakd_stages.energies.taid import Taid
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.targets import TeacherTargets

GRID = (0.5, 1.0, 2.0, 3.0, 5.0)


Oracle = Callable[[int, oracles.Array], float]
"""From a token and the student's logits there to its energy."""


def run(energy: Energy, batch: Batch, targets: TeacherTargets) -> Tensor:
    """The energy of each token."""
    return energy(batch.statistics(targets, energy.needs(targets)), targets)


def assert_agrees(energy: Energy, batch: Batch, targets: TeacherTargets, oracle: Oracle, rtol: float = 1e-7) -> None:
    """Values, and gradients at the hidden states, are those of the oracle of each token's logits."""
    hidden = batch.hidden.clone().requires_grad_()
    values = run(energy, replace(batch, hidden=hidden), targets)
    (gradients,) = torch.autograd.grad(values.sum(), hidden)
    for token, student in enumerate(batch.student_logits):
        np.testing.assert_allclose(values[token].detach(), oracle(token, student), rtol=rtol)
        slope = oracles.numerical_gradient(partial(oracle, token), student) @ batch.weight.numpy()
        np.testing.assert_allclose(gradients[token], slope, rtol=1e-5, atol=1e-8)


def test_taid_rises_along_the_line_or_faster_and_remembers_the_relative_fall(batch: Batch) -> None:
    energy = make_energy("taid", rate=0.5)
    assert isinstance(energy, Taid)
    t, fall, previous = 0.4, 0.0, math.nan
    for step in range(1, 6):
        values = run(energy, replace(batch, hidden=batch.hidden * (1 - 0.1 * step)), batch.targets(top_k=8))
        energy.advance(step / 10)
        mean = float(values.mean())
        if step > 1:
            fall = 0.99 * fall + 0.01 * (previous - mean) / previous
            t = min(1.0, max(0.4 + 0.6 * step / 10, t + 0.5 / (1 + math.exp(-fall)) * (1 - t)))
        previous = mean
        assert float(energy.t) == pytest.approx(t, rel=1e-5)
    assert t > 0.4 + 0.6 * 0.5


def test_taid_advances_once_for_all_accumulated_batches_and_not_in_evaluation(batch: Batch) -> None:
    whole, parts = make_energy("taid", rate=0.5), make_energy("taid", rate=0.5)
    assert isinstance(whole, Taid)
    assert isinstance(parts, Taid)
    targets = batch.targets(top_k=8)
    for step in (1, 2):
        run(whole, batch, targets)
        run(parts, batch, targets)
        run(parts, batch, targets)
        whole.advance(step / 10)
        parts.advance(step / 10)
    assert float(whole.t) == float(parts.t) > 0.4
    parts.eval()
    run(parts, batch, targets)
    parts.advance(1.0)
    assert float(whole.t) == float(parts.t)


def test_taid_ends_at_the_teacher_and_its_state_is_saved(batch: Batch) -> None:
    energy, restored = make_energy("taid"), make_energy("taid")
    for progress in (0.5, 1.0):
        run(energy, batch, batch.targets(top_k=8))
        energy.advance(progress)
    restored.load_state_dict(energy.state_dict())
    found = run(restored, batch, batch.targets(top_k=8))
    torch.testing.assert_close(found, run(make_energy("fkl"), batch, batch.targets(top_k=8)))


def test_taid_as_a_cross_entropy_counts_the_entropy_inside_a_sparse_tail(batch: Batch) -> None:
    targets = batch.targets((1.0, 2.0), top_k=8)
    values = run(make_energy("taid", "reference", temperature=2.0), batch, targets)
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        student = batch.student_logits[token]
        point = oracles.point(teacher, student, student, kept_ids(targets, token), 0, temperature=2.0)
        intermediate = oracles.softmax(0.6 * np.log(point.q) + 0.4 * np.log(point.p))
        np.testing.assert_allclose(values[token], oracles.cross_entropy(intermediate, point.q))


def test_the_teachers_entropy_added_to_a_sparse_energy_is_that_of_its_whole_distribution(batch: Batch) -> None:
    targets = batch.targets((1.0, 2.0), top_k=8)
    for name in ("fkl", "skew_fkl", "rkl"):
        plain = run(make_energy(name, temperature=2.0), batch, targets)
        added = run(make_energy(name, temperature=2.0, include_teacher_entropy=True), batch, targets)
        entropies = [oracles.entropy(teacher, 2.0) for teacher in batch.teacher_logits.numpy()]
        np.testing.assert_allclose(added - plain, entropies)


@pytest.mark.parametrize("name", ["ctkd", "ctkd_mlp"])
@pytest.mark.parametrize(("semantics", "temperature"), [("paper", 1 + 4 / (1 + math.exp(2))), ("reference", None)])
def test_ctkd_is_forward_kl_at_its_temperature(
    batch: Batch, name: str, semantics: str, temperature: float | None
) -> None:
    energy = make_energy(name, semantics)
    targets = batch.targets(GRID)
    if temperature is None:
        temperature = 1 + 4 / (1 + math.exp(2)) if name == "ctkd" else 0.5 + 3.5 / 2
    factor = temperature if (name, semantics) == ("ctkd", "reference") else 1.0

    def oracle(token: int, student: oracles.Array) -> float:
        p = oracles.softmax(batch.teacher_logits[token].numpy(), temperature)
        q = oracles.softmax(student, temperature)
        return factor * (oracles.kl(p, q) if semantics == "paper" else oracles.cross_entropy(p, q))

    assert_agrees(energy, batch, targets, oracle, rtol=1e-6)


@pytest.mark.parametrize("top_k", [None, 8])
def test_the_gradient_of_ctkds_temperature_is_reversed_and_grows_over_the_run(batch: Batch, top_k: int | None) -> None:
    targets = batch.targets(GRID, top_k=top_k)

    def value(raw: float) -> float:
        probe = make_energy("ctkd").double()
        assert isinstance(probe, CurriculumTemperature)
        probe.raw.data.fill_(raw)
        return float(run(probe, batch, targets).sum().detach())

    slope = (value(-2 + 1e-4) - value(-2 - 1e-4)) / 2e-4
    energy = make_energy("ctkd").double()
    assert isinstance(energy, CurriculumTemperature)
    for progress, scale in ((0.0, 0.0), (0.5, -0.5), (1.0, -1.0)):
        energy.advance(progress)
        (gradient,) = torch.autograd.grad(run(energy, batch, targets).sum(), energy.raw)
        assert float(gradient) == pytest.approx(scale * slope, rel=1e-5, abs=1e-12)
    unreversed = make_energy("ctkd", gradient_scale=1.0).double()
    assert isinstance(unreversed, CurriculumTemperature)
    unreversed.advance(0.5)
    (gradient,) = torch.autograd.grad(run(unreversed, batch, targets).sum(), unreversed.raw)
    assert float(gradient) == pytest.approx(slope, rel=1e-5)


def test_the_published_temperature_is_not_reversed_and_its_curriculum_stands_still(batch: Batch) -> None:
    """At the first of ten epochs: a factor (1 + cos(pi / 10)) / 2, whatever the progress."""
    targets = batch.targets(GRID)

    def value(raw: float) -> float:
        temperature = 1 + 4 / (1 + math.exp(-raw))
        pairs = zip(batch.teacher_logits.numpy(), batch.student_logits, strict=True)
        terms = [
            oracles.cross_entropy(oracles.softmax(t, temperature), oracles.softmax(s, temperature)) for t, s in pairs
        ]
        return temperature * sum(terms)

    slope = (value(-2 + 1e-4) - value(-2 - 1e-4)) / 2e-4
    energy = make_energy("ctkd", "reference").double()
    assert isinstance(energy, CurriculumTemperature)
    for progress in (0.0, 1.0):
        energy.advance(progress)
        (gradient,) = torch.autograd.grad(run(energy, batch, targets).sum(), energy.raw)
        assert float(gradient) == pytest.approx(slope * (1 + math.cos(math.pi / 10)) / 2, rel=1e-5)


def test_ctkds_network_gives_every_token_its_own_temperature_and_gets_gradients(batch: Batch) -> None:
    energy = make_energy("ctkd_mlp")
    torch.manual_seed(0)
    for parameter in energy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    energy.advance(1.0)
    targets = batch.targets(GRID, top_k=3)
    (temperature,) = energy.needs(targets).learned.values()
    assert len(set(temperature.tolist())) == batch.hidden.shape[0]
    run(energy, batch, targets).sum().backward()
    for parameter in energy.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any())


@pytest.mark.parametrize("name", ["ctkd", "ctkd_mlp"])
def test_ctkd_refuses_a_cache_that_does_not_reach_its_temperatures(batch: Batch, name: str) -> None:
    energy = make_energy(name)
    with pytest.raises(MismatchError, match=r"temperature 5 asked for, but the cache holds 1, 2: choose"):
        energy.needs(batch.targets((1.0, 2.0)))
    make_energy(name, temperature_span=1.0).needs(batch.targets((1.0, 2.0)))


ALPHA_BETA_LIMITS = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.0), (0.0, 0.7), (0.0, 0.0), (0.5, -0.5), (-0.5, 0.5)]


@pytest.mark.parametrize("keeping", [{}, {"top_k": 8}], ids=str)
@pytest.mark.parametrize(("alpha", "beta"), ALPHA_BETA_LIMITS)
def test_the_limits_of_alpha_beta_are_what_it_tends_to(
    batch: Batch, keeping: dict[str, Any], alpha: float, beta: float
) -> None:
    targets = batch.targets(**keeping)
    values = run(make_energy("alpha_beta", alpha=alpha, beta=beta), batch, targets)
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        student = batch.student_logits[token]
        point = oracles.point(teacher, student, student, kept_ids(targets, token), 0)
        # Close to the limit from a side on which all three of a, b and a + b differ from 0.
        near = oracles.alpha_beta(point.p, point.q, alpha + 2e-5, beta + 1e-5)
        np.testing.assert_allclose(values[token], near, rtol=2e-3)


def test_alpha_beta_meets_forward_and_reverse_kl(batch: Batch) -> None:
    targets = batch.targets(top_k=8)
    for name, alpha, beta in (("fkl", 1.0, 0.0), ("rkl", 0.0, 1.0)):
        found = run(make_energy("alpha_beta", alpha=alpha, beta=beta), batch, targets)
        torch.testing.assert_close(found, run(make_energy(name), batch, targets))


@pytest.mark.parametrize("name", ["mse_logits", "cosine_logits"])
@pytest.mark.parametrize("standardise", [True, False])
def test_logit_energies_compare_the_kept_entries(batch: Batch, name: str, standardise: bool) -> None:
    targets = batch.targets(top_k=8)

    def oracle(token: int, student: oracles.Array) -> float:
        kept = kept_ids(targets, token)
        sides = [
            ((logits - logits.mean()) / logits.std() if standardise else logits)[kept]
            for logits in (batch.teacher_logits[token].numpy(), student)
        ]
        return float(((sides[0] - sides[1]) ** 2).mean()) if name == "mse_logits" else oracles.cosine_distance(*sides)

    assert_agrees(make_energy(name, standardise=standardise), batch, targets, oracle)


def test_logit_energies_refuse_a_cache_without_moments(batch: Batch) -> None:
    bare = replace(batch.targets(top_k=8), logit_mean=None)
    with pytest.raises(MismatchError, match=r"needs the largest logit, mean and deviation.*cache the teacher again"):
        run(make_energy("mse_logits"), batch, bare)


def test_dkd_takes_the_tail_for_the_label_where_the_label_is_not_kept(batch: Batch) -> None:
    targets = batch.targets(top_k=4)
    elsewhere = torch.tensor([next(v for v in range(40) if v not in row) for row in targets.ids.tolist()])
    values = run(make_energy("dkd"), batch, replace(targets, gold_ids=elsewhere))
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        kept = kept_ids(targets, token)
        sides = [oracles.softmax(logits)[kept] for logits in (teacher, batch.student_logits[token])]
        p, q = (np.append(side, 1 - side.sum()) for side in sides)
        np.testing.assert_allclose(values[token], oracles.decoupled(p, q, len(kept)))


def test_mse_with_the_teachers_entropy_is_the_expected_squared_error_to_a_drawn_token(batch: Batch) -> None:
    values = run(make_energy("mse_probs", include_teacher_entropy=True), batch, batch.targets())
    for token, teacher in enumerate(batch.teacher_logits.numpy()):
        p, q = oracles.softmax(teacher), oracles.softmax(batch.student_logits[token])
        drawn = ((np.eye(len(p)) - q) ** 2).sum(axis=1)
        np.testing.assert_allclose(values[token], p @ drawn)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("skew_fkl", {"skew": 1.5}, r"skew is 1.5: give a number from 0 to 1"),
        ("alpha_beta", {"alpha": -1.0, "beta": 0.5}, r"alpha \+ beta is -0.5: give a sum of 0 or more"),
        ("ctkd", {"temperature": 2.0}, r"temperature is given, but this energy learns its own: leave it out"),
        ("ctkd", {"minimum_temperature": 0.0}, r"temperatures from 0.0 with span 4.0: give a minimum above 0"),
    ],
)
def test_settings_without_meaning_are_errors(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_energy(name, **settings)

"""Weightings beside the paper's own: manual scales, the published code's uncertainty, PCGrad, GradNorm, and a learned
weight of the cross-entropy."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective.batches import Batch
from torch import Tensor

from betakd_stages.errors import ConfigError
from betakd_stages.objective import Objective, ObjectiveOutput
from betakd_stages.objective_building import build_objective
from betakd_stages.statistics import Head
from betakd_stages.weightings import Weighting, make_weighting
from betakd_stages.weightings.gradients import GradNorm, PCGrad
from betakd_stages.weightings.manual import ManualWeighting

CHANNELS = ("fkl", "feature:vision")
CROSS_ENTROPY = torch.tensor([2.0, 1.0, 3.0])
ENERGIES = torch.tensor([[0.5, 4.0], [0.25, 2.0], [1.0, 0.0]])
PRESENT = torch.tensor([[True, True], [True, True], [True, False]])
INPUTS = torch.tensor([[1.0, 5.0], [-1.0, 7.0], [0.0, 9.0]])


def objective_of(weighting: Weighting) -> Tensor:
    """The mean objective of the batch above."""
    return weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS).objective.mean()


def test_manual_weights_bring_each_energy_to_the_scale_of_the_cross_entropy() -> None:
    weighting = make_weighting("manual", CHANNELS, 2, num_batches=2)
    with pytest.raises(ConfigError, match=r"has measured 0 of 2 batches: run 2 more without gradients"):
        objective_of(weighting)
    with torch.no_grad():
        assert weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS).betas[0].tolist() == [1.0, 1.0]
        weighting(3 * CROSS_ENTROPY, 2 * ENERGIES, PRESENT, INPUTS)
    assert weighting.remaining_batches == 0
    output = weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS)
    cross_entropy = (6 + 18) / 6
    np.testing.assert_allclose(output.betas[0], [cross_entropy / (5.25 / 6), cross_entropy / (18 / 4)], rtol=1e-6)
    assert output.betas[2, 1].item() == 0.0
    expected = CROSS_ENTROPY + (output.betas * ENERGIES).sum(dim=1)
    torch.testing.assert_close(output.objective, expected)


def test_manual_weights_stay_frozen_and_are_saved_with_the_run() -> None:
    weighting = make_weighting("manual", CHANNELS, 2, num_batches=1)
    with torch.no_grad():
        objective_of(weighting)
    first = weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS).betas
    with torch.no_grad():
        weighting(9 * CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS)
    restored = make_weighting("manual", CHANNELS, 2, num_batches=1)
    restored.load_state_dict(weighting.state_dict())
    assert torch.equal(restored(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS).betas, first)


def test_an_energy_of_zero_has_no_manual_weight() -> None:
    weighting = make_weighting("manual", CHANNELS, 2, num_batches=1)
    assert isinstance(weighting, ManualWeighting)
    with torch.no_grad():
        weighting(CROSS_ENTROPY, torch.zeros(3, 2), PRESENT, INPUTS)
    with pytest.raises(ConfigError, match=r"channel 'fkl' has energy 0.0 over the first 1 batches.*give fixed weights"):
        weighting.measured()


def published_task(log_variances: Tensor) -> Tensor:
    """Half of (e^-s L + s), s within 5 of 0, over cross-entropy and channels; as the paper's code, per sample."""
    s = log_variances.clamp(-5.0, 5.0)
    losses = torch.cat([CROSS_ENTROPY.unsqueeze(1), ENERGIES], dim=1)
    mask = torch.cat([torch.ones(3, 1, dtype=torch.bool), PRESENT], dim=1)
    return (0.5 * (torch.exp(-s) * losses + s)).masked_fill(~mask, 0.0).sum(dim=1).mean()


@pytest.mark.parametrize(("name", "semantics"), [("task", "reference"), ("kendall", "paper")])
@pytest.mark.parametrize("s", [[0.0, 0.0, 0.0], [0.3, -1.2, 2.0], [1.0, 6.0, -7.0]])
def test_reference_task_weighting_has_the_gradient_of_the_papers_code(
    name: str, semantics: str, s: list[float]
) -> None:
    weighting = make_weighting(name, CHANNELS, 2, semantics=semantics)
    log_variances = torch.tensor(s, requires_grad=True)
    (expected,) = torch.autograd.grad(published_task(log_variances), log_variances)
    raw = weighting.raw
    assert isinstance(raw, torch.nn.Parameter)
    with torch.no_grad():
        raw.copy_(math.log(0.5) - log_variances)
    (found,) = torch.autograd.grad(objective_of(weighting), raw)
    torch.testing.assert_close(found, -expected)
    with torch.no_grad():
        raw.fill_(math.log(0.5))
    constant = 0.5 * math.log(0.5) * float(torch.cat([torch.ones(3, 1), PRESENT.float()], dim=1).sum()) / 3
    start = published_task(torch.zeros(3))
    assert objective_of(weighting).item() + constant == pytest.approx(float(start), rel=1e-6)


def test_reference_instance_weighting_gives_every_sample_the_batchs_mean_losses() -> None:
    weighting = make_weighting("instance", CHANNELS, 2, semantics="reference")
    torch.manual_seed(0)
    torch.nn.init.normal_(weighting.network[2].weight, std=0.1)  # type: ignore[index, union-attr]
    output = weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS)
    s = -weighting.network(INPUTS).clamp(-5, 5)  # type: ignore[operator]
    means = torch.tensor([2.0, 1.75 / 3, 3.0])
    terms = torch.exp(-s) * means + s
    terms[2, 2] = 0.0
    torch.testing.assert_close(output.objective, terms.sum(dim=1))


def test_a_learned_weight_of_the_cross_entropy_can_differ_between_samples() -> None:
    torch.manual_seed(0)
    weighting = make_weighting("instance", ("fkl",), 2, learn_cross_entropy=True)
    present = torch.ones(3, 1, dtype=torch.bool)
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = weighting(CROSS_ENTROPY, ENERGIES[:, :1], present, INPUTS).objective.mean()
        loss.backward()
        return loss

    optimizer.step(step)
    output = weighting(CROSS_ENTROPY, ENERGIES[:, :1], present, INPUTS)
    torch.testing.assert_close(output.cross_entropy_weights, 1 / (2 * CROSS_ENTROPY), rtol=0.01, atol=0)


def test_pcgrad_projects_conflicts_away_and_leaves_agreement_alone() -> None:
    weighting = make_weighting("pcgrad", ("fkl",), 0)
    assert isinstance(weighting, PCGrad)
    agreeing = [[torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])]]
    assert weighting.combine(agreeing, torch.ones(2))[0].tolist() == [2.0, 1.0]
    conflicting = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]
    # (1, 0) loses its share along (-1, 1), and the other way round.
    assert weighting.combine(conflicting, torch.ones(2))[0].tolist() == [0.5, 1.5]
    with_zero = [[torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 0.0])]]
    assert weighting.combine(with_zero, torch.ones(2))[0].tolist() == [1.0, 0.0]


def test_gradnorm_lowers_the_weight_of_the_channel_with_the_larger_gradient() -> None:
    weighting = make_weighting("gradnorm", ("fkl",), 0, learning_rate=0.01, restoring_force=0.0)
    assert isinstance(weighting, GradNorm)
    for _ in range(300):
        weights = weighting.weights.tolist()
        gradients = [[torch.tensor([3.0 * weights[0]])], [torch.tensor([1.0 * weights[1]])]]
        weighting.combine(gradients, torch.ones(2))
    # Equal norms: 3 w0 = w1 with w0 + w1 = 2.
    np.testing.assert_allclose(weighting.weights, [0.5, 1.5], atol=0.05)


def test_gradnorm_gives_more_to_a_channel_whose_loss_falls_less() -> None:
    weighting = make_weighting("gradnorm", ("fkl",), 0)
    assert isinstance(weighting, GradNorm)
    gradients = [[torch.tensor([1.0])], [torch.tensor([1.0])]]
    weighting.combine(gradients, torch.tensor([1.0, 1.0]))
    assert weighting.weights.tolist() == [1.0, 1.0]
    weighting.combine(gradients, torch.tensor([1.0, 0.1]))
    assert weighting.weights[0] > 1.0 > weighting.weights[1]


@dataclass(frozen=True, slots=True)
class Trained:
    """A student of one weight matrix under an objective."""

    hidden: Tensor
    weight: torch.nn.Parameter
    objective: Objective
    output: ObjectiveOutput


def trained(batch: Batch, weighting: str, **settings: Any) -> Trained:
    objective = build_objective(energies=[("fkl", {}), ("rkl", {})], weighting=weighting, weighting_settings=settings)
    weight = torch.nn.Parameter(batch.weight.clone())
    output = objective(batch.hidden, Head(weight), batch.targets(top_k=8))
    return Trained(batch.hidden, weight, objective, output)


@pytest.mark.parametrize("weighting", ["fixed", "task"])
def test_backward_is_one_plain_pass_for_weightings_of_values(batch: Batch, weighting: str) -> None:
    run = trained(batch, weighting)
    (expected,) = torch.autograd.grad(run.output.total / 2.0, run.weight, retain_graph=True)
    run.objective.backward(run.output, [run.weight], divisor=2.0)
    assert run.weight.grad is not None
    torch.testing.assert_close(run.weight.grad, expected)


@pytest.mark.parametrize("weighting", ["pcgrad", "gradnorm"])
def test_backward_combines_the_gradients_of_the_channels(batch: Batch, weighting: str) -> None:
    run = trained(batch, weighting)
    totals = run.output.channel_totals()
    torch.testing.assert_close(totals.sum(), run.output.total)
    parts = [torch.autograd.grad(total, run.weight, retain_graph=True)[0] for total in totals]
    torch.manual_seed(0)
    run.objective.backward(run.output, [run.weight], divisor=1.0)
    torch.manual_seed(0)
    twin = make_weighting(weighting, ("fkl", "rkl"), 0)
    assert isinstance(twin, PCGrad | GradNorm)
    (expected,) = twin.combine([[part] for part in parts], run.output.mean_losses().detach())
    assert run.weight.grad is not None
    torch.testing.assert_close(run.weight.grad, expected)
    assert not torch.equal(twin.weights, torch.ones(3)) or weighting == "pcgrad"


@pytest.mark.parametrize("weighting", ["pcgrad", "gradnorm"])
def test_a_plain_backward_is_refused_where_gradients_are_to_be_combined(batch: Batch, weighting: str) -> None:
    run = trained(batch, weighting)
    with pytest.raises(ConfigError, match=r"combines the channels' gradients.*call Objective.backward in place of"):
        run.output.total.backward()


def test_the_objective_asks_for_the_batches_that_manual_weights_need(batch: Batch) -> None:
    objective = build_objective(energies=[("fkl", {})], weighting="manual", weighting_settings={"num_batches": 3})
    assert objective.remaining_batches == 3
    with torch.no_grad():
        objective(batch.hidden, Head(batch.weight), batch.targets(top_k=8))
    assert objective.remaining_batches == 2
    assert build_objective(energies=[("fkl", {})]).remaining_batches == 0

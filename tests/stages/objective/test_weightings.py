"""What each weighting makes of energies, and where learned weights end."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from betakd_stages.errors import ConfigError
from betakd_stages.weightings import WEIGHTINGS, make_weighting
from betakd_stages.weightings.learned import TaskWeighting

CHANNELS = ("fkl", "feature:vision")
CROSS_ENTROPY = torch.tensor([2.0, 1.0, 3.0])
ENERGIES = torch.tensor([[0.5, 4.0], [0.25, 2.0], [1.0, 0.0]])
PRESENT = torch.tensor([[True, True], [True, True], [True, False]])
INPUTS = torch.tensor([[1.0, 5.0], [-1.0, 7.0], [0.0, 9.0]])


@pytest.mark.parametrize("beta", [3.0, {"fkl": 2.0, "feature:vision": 0.0}], ids=str)
def test_fixed_weights_make_the_plain_weighted_sum(beta: float | dict[str, float]) -> None:
    weighting = make_weighting("fixed", CHANNELS, 2, beta=beta, cross_entropy_weight=0.5)
    output = weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS)
    values = [beta[name] if isinstance(beta, dict) else beta for name in CHANNELS]
    for sample in range(3):
        expected = 0.5 * float(CROSS_ENTROPY[sample])
        expected += sum(values[c] * float(ENERGIES[sample, c]) for c in range(2) if PRESENT[sample, c])
        assert output.objective[sample].item() == pytest.approx(expected)
    assert output.betas[2].tolist() == [values[0], 0.0]


@pytest.mark.parametrize("name", ["task", "instance"])
@pytest.mark.parametrize("positivity", ["softplus", "exp"])
def test_learned_weights_start_where_asked_and_make_the_papers_objective(name: str, positivity: str) -> None:
    initial = {"fkl": 2.0, "feature:vision": 0.5}
    dimension = {"fkl": 3.0, "feature:vision": 1.0}
    weighting = make_weighting(name, CHANNELS, 2, initial_beta=initial, positivity=positivity, dimension=dimension)
    output = weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS)
    for sample in range(3):
        expected = float(CROSS_ENTROPY[sample])
        for column, channel in enumerate(CHANNELS):
            if PRESENT[sample, column]:
                beta = initial[channel]
                expected += beta * float(ENERGIES[sample, column]) - dimension[channel] / 2 * math.log(beta)
                assert output.betas[sample, column].item() == pytest.approx(beta, rel=1e-5)
            else:
                assert output.betas[sample, column].item() == 0.0
        assert output.objective[sample].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("positivity", ["softplus", "exp"])
@pytest.mark.parametrize("dimension", [1.0, 4.0])
def test_the_stationary_task_weight_is_half_the_dimension_over_the_energy(positivity: str, dimension: float) -> None:
    weighting = make_weighting("task", CHANNELS, 2, positivity=positivity, dimension=dimension)
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS).objective.mean()
        loss.backward()
        return loss

    optimizer.step(step)
    betas = weighting(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS).betas[0].tolist()
    mean_energies = [(0.5 + 0.25 + 1.0) / 3, (4.0 + 2.0) / 2]
    for beta, energy in zip(betas, mean_energies, strict=True):
        assert beta == pytest.approx(dimension / (2 * energy), rel=0.01)


def test_stationary_instance_weights_differ_inside_one_batch_as_their_energies_do() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, 4)
    energies = torch.rand(8, 1) + 0.1
    weighting = make_weighting("instance", ("fkl",), 4)
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = weighting(torch.ones(8), energies, torch.ones(8, 1, dtype=torch.bool), inputs).objective.mean()
        loss.backward()
        return loss

    optimizer.step(step)
    betas = weighting(torch.ones(8), energies, torch.ones(8, 1, dtype=torch.bool), inputs).betas
    torch.testing.assert_close(betas, 1 / (2 * energies), rtol=0.01, atol=0)


def test_instance_inputs_are_standardised_by_the_statistics_given() -> None:
    torch.manual_seed(0)
    mean, deviation = torch.tensor([10.0, -5.0]), torch.tensor([100.0, 0.0])
    torch.manual_seed(1)
    given = make_weighting("instance", CHANNELS, 2, input_mean=mean, input_deviation=deviation)
    torch.manual_seed(1)
    plain = make_weighting("instance", CHANNELS, 2)
    for weighting in (given, plain):
        torch.nn.init.ones_(weighting.network[2].weight)  # type: ignore[index, union-attr]
    scaled = torch.tensor([[(1 - 10) / 100, 5 + 5], [(-1 - 10) / 100, 7 + 5], [(0 - 10) / 100, 9 + 5]])
    found = given(CROSS_ENTROPY, ENERGIES, PRESENT, INPUTS).betas
    torch.testing.assert_close(found, plain(CROSS_ENTROPY, ENERGIES, PRESENT, scaled).betas)


def test_an_absent_channel_teaches_its_weight_nothing() -> None:
    weighting = make_weighting("task", CHANNELS, 2)
    none = torch.tensor([[True, False]] * 3)
    weighting(CROSS_ENTROPY, ENERGIES, none, INPUTS).objective.sum().backward()
    gradient = weighting.raw.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient[0] != 0
    assert gradient[1] == 0


@pytest.mark.parametrize("raw", [-500.0, -31.0, -29.0, 0.0, 80.0])
def test_softplus_weights_have_a_finite_logarithm_everywhere(raw: float) -> None:
    weighting = make_weighting("task", ("fkl",), 0)
    assert isinstance(weighting, TaskWeighting)
    with torch.no_grad():
        weighting.raw.fill_(raw)
    log_beta = weighting._log_beta(weighting.raw)
    expected = raw if raw < -30 else np.log(np.log1p(np.exp(raw)))
    assert log_beta.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_unknown_settings_of_a_weighting_are_errors_that_list_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"weighting '{name}' has no setting 'lr': its settings are .*weight"):
        make_weighting(name, CHANNELS, 2, lr=1.0)


def test_wrong_weights_are_errors_that_say_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"unknown weighting 'learned': choose one of fixed, gradnorm, instance"):
        make_weighting("learned", CHANNELS, 2)
    with pytest.raises(ConfigError, match=r"beta is given for rkl but the channels are fkl, feature:vision: give"):
        make_weighting("fixed", CHANNELS, 2, beta={"rkl": 1.0})
    with pytest.raises(ConfigError, match=r"beta is \[-1.0, -1.0\]: give weights of 0 or more"):
        make_weighting("fixed", CHANNELS, 2, beta=-1.0)
    with pytest.raises(ConfigError, match=r"initial_beta is \[0.0, 0.0\]: give numbers above 0"):
        make_weighting("task", CHANNELS, 2, initial_beta=0.0)
    with pytest.raises(ConfigError, match=r"unknown positivity 'relu': choose one of exp, softplus"):
        make_weighting("task", CHANNELS, 2, positivity="relu")
    with pytest.raises(ConfigError, match=r"unknown semantics 'papers': choose one of paper, reference"):
        make_weighting("task", CHANNELS, 2, semantics="papers")
    with pytest.raises(ConfigError, match=r"num_batches is 0: give 1 or more"):
        make_weighting("manual", CHANNELS, 2, num_batches=0)
    with pytest.raises(ConfigError, match=r"learning_rate is -1.0: give a number above 0"):
        make_weighting("gradnorm", CHANNELS, 2, learning_rate=-1.0)
    with pytest.raises(ConfigError, match=r"instance weighting has no inputs: cache a pooled teacher feature"):
        make_weighting("instance", CHANNELS, 0)

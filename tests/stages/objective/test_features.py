"""Feature channels: collapse, layouts with several places, focus, the published projection, and their errors."""

import numpy as np
import pytest
import torch
from tests.stages.objective.batches import Batch
from torch import Tensor

from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.features import FeatureChannel, FeatureStatistics, arrange
from betakd_stages.objective_building import build_objective
from betakd_stages.statistics import Head

STATISTICS = FeatureStatistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, 4.0]))


def features(num_places: int, size: int, seed: int) -> Tensor:
    """`[2, P, size]`."""
    return torch.randn(2, num_places, size, generator=torch.Generator().manual_seed(seed))


def channel(**settings: object) -> FeatureChannel:
    torch.manual_seed(0)
    return FeatureChannel("vision", 4, STATISTICS, **settings)  # type: ignore[arg-type]


def test_arranging_pools_tokens_or_cuts_their_square_into_cells() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    assert arrange(tokens, "pooled").tolist() == [[7.5]]
    assert torch.equal(arrange(tokens, "tokens"), tokens)
    assert arrange(tokens, "grid:2x2").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert arrange(tokens, "grid:2x1").flatten().tolist() == [3.5, 11.5]


@pytest.mark.parametrize("layout", ["cells", "grid:4", "grid:0x2", "grid:axb", "grids:2x2"])
def test_an_unknown_layout_is_an_error_that_names_the_layouts(layout: str) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown feature layout .*choose pooled, tokens, or a grid such as grid:4x4"
    ):
        arrange(torch.zeros(1, 16, 2), layout)


def test_a_grid_of_tokens_that_are_no_square_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"needs a square of visual tokens, found 15: choose tokens"):
        arrange(torch.zeros(1, 15, 2), "grid:2x2")


@pytest.mark.parametrize("project", ["student", "teacher"])
@pytest.mark.parametrize("focused", [True, False])
def test_the_energy_is_the_mean_squared_error_over_the_places_and_those_in_focus(project: str, focused: bool) -> None:
    built = channel(project=project, focus=focused)
    student, teacher = features(5, 4, 1).requires_grad_(), features(5, 3, 2)
    focus = torch.tensor([[0, 3], [4, 1]])
    found = built(student, teacher, focus)
    weight, bias = (parameter.detach().numpy() for parameter in built.projection.parameters())
    standard = (teacher.numpy() - np.array([1.0, 2.0, 3.0])) / np.array([2.0, 1.0, 4.0])
    own = student.detach().numpy()
    difference = own @ weight.T + bias - standard if project == "student" else own - (standard @ weight.T + bias)
    for sample in range(2):
        errors = (difference[sample] ** 2).mean(axis=1)
        expected = errors.mean() + (errors[focus[sample].numpy()].mean() if focused else 0.0)
        np.testing.assert_allclose(found[sample].detach(), expected, rtol=1e-5)


def test_features_that_do_not_fit_are_errors() -> None:
    student, teacher = features(5, 4, 1).requires_grad_(), features(4, 3, 2)
    with pytest.raises(MismatchError, match=r"got \[5\] places of the student and \[4\] of the teacher: give both"):
        channel()(student, teacher)
    with pytest.raises(MismatchError, match=r"'vision' with focus needs several places and the indices"):
        channel(focus=True)(student[:, :4], teacher)
    with pytest.raises(ConfigError, match=r"project is 'both': choose student or teacher"):
        channel(project="both")


def test_an_objective_takes_features_with_settings_and_several_places(batch: Batch) -> None:
    objective = build_objective(
        features=[("vision", {"focus": True})],
        weighting="instance",
        teacher_features={"vision": STATISTICS},
        student_feature_sizes={"vision": 4},
    )
    student, teacher = features(5, 4, 1).requires_grad_(), features(5, 3, 2)
    targets = batch.targets(top_k=4, sample_index=torch.tensor([0, 0, 1, 1, 1, 1]))
    focus = torch.tensor([[0, 3], [4, 1]])
    output = objective(
        batch.hidden, Head(batch.weight), targets, {"vision": student}, {"vision": teacher, "vision_focus": focus}
    )
    expected = objective.features["vision"](student, teacher, focus)
    torch.testing.assert_close(output.energies[:, 0].float(), expected)
    with pytest.raises(ConfigError, match=r"feature 'vision' has no setting 'grid': its settings are focus, project"):
        build_objective(
            features=[("vision", {"grid": 2})],
            teacher_features={"vision": STATISTICS},
            student_feature_sizes={"vision": 4},
        )


def test_a_constant_student_feature_does_not_reach_an_energy_of_zero() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(64, 6) * 3 + 1
    statistics = FeatureStatistics(teacher.mean(0), teacher.std(0, correction=0))
    objective = build_objective(
        features=["vision"], teacher_features={"vision": statistics}, student_feature_sizes={"vision": 4}
    )
    channel = objective.features["vision"]
    student = torch.ones(64, 4, requires_grad=True)
    optimizer = torch.optim.Adam(channel.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        channel(student, teacher).mean().backward()
        optimizer.step()
    assert float(channel(student, teacher).mean().detach()) == pytest.approx(1.0, abs=0.02)

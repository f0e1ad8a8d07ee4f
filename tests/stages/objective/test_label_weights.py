"""A weight of the cross-entropy for each sample, from how probable the teacher finds its label."""

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import VOCABULARY
from torch import Tensor

from betakd_stages.objective import Objective
from betakd_stages.objective_building import build_objective
from betakd_stages.statistics import Head
from betakd_stages.targets import TeacherTargets

CONFIRMED, DENIED = (0, 1, 2), (3, 4, 5)
"""Samples of one token whose label the teacher finds probable, and improbable."""


class Scene:
    """Six samples; the teacher's distributions differ only in which token is the label."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = -1.5 * torch.arange(1, VOCABULARY + 1, dtype=torch.float64).log()
        self.teacher = torch.stack([logits.roll(shift) for shift in range(6)])
        self.gold_ids = torch.tensor([sample if sample in CONFIRMED else sample + 20 for sample in range(6)])
        self.student = torch.randn(6, VOCABULARY, generator=generator, dtype=torch.float64)

    @property
    def targets(self) -> TeacherTargets:
        return TeacherTargets.from_logits(
            self.teacher, self.gold_ids, top_k=8, sample_index=torch.arange(6), num_samples=6
        )

    def cross_entropies(self) -> np.ndarray:
        """From the formula, `[6]`."""
        return np.array(
            [-oracles.log_softmax(row)[gold] for row, gold in zip(self.student.numpy(), self.gold_ids, strict=True)]
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


def label_weighting(**settings: object) -> Objective:
    torch.manual_seed(0)
    return build_objective(
        energies=[("fkl", {})],
        weighting="instance",
        weighting_inputs=["gold_probability"],
        weighting_settings={"learn_cross_entropy": True, **settings},
    )


def test_the_input_is_the_teachers_probability_of_the_label(scene: Scene) -> None:
    objective = label_weighting()
    num_tokens = torch.ones(6, dtype=torch.int64)
    found = objective.inputs(scene.targets, num_tokens, {}, {})
    expected = [oracles.softmax(row)[gold] for row, gold in zip(scene.teacher.numpy(), scene.gold_ids, strict=True)]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


def test_labels_the_teacher_denies_end_with_the_weight_of_their_own_cross_entropies(scene: Scene) -> None:
    """On a frozen student the optimum of w CE - log(w) / 2 is w = 1 / (2 mean CE) over the labels of equal input."""
    objective = label_weighting()
    head = Head(torch.eye(VOCABULARY, dtype=torch.float64))
    # A student that half agrees with the teacher, so that denied labels cost it more.
    scene.student += scene.teacher
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=400, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(scene.student, head, scene.targets).total / 6
        loss.backward()
        return loss

    optimizer.step(step)
    weights = objective(scene.student, head, scene.targets).cross_entropy_weights.detach().numpy()
    for group in (CONFIRMED, DENIED):
        expected = 1 / (2 * scene.cross_entropies()[list(group)].mean())
        np.testing.assert_allclose(weights[list(group)], expected, rtol=0.01)
    assert weights[list(CONFIRMED)].min() > 1.5 * weights[list(DENIED)].max()


def test_the_weight_multiplies_the_cross_entropy_of_its_sample_in_the_objective(scene: Scene) -> None:
    objective = label_weighting(initial_beta=2.0, dimension=3.0)
    torch.nn.init.normal_(objective.weighting.network[2].weight)  # type: ignore[index, union-attr]
    output = objective(scene.student, Head(torch.eye(VOCABULARY, dtype=torch.float64)), scene.targets)
    weights, betas = output.cross_entropy_weights.detach().numpy(), output.betas[:, 0].detach().numpy()
    energies = output.energies[:, 0].detach().numpy()
    expected = weights * scene.cross_entropies() + betas * energies - 1.5 * np.log(weights * betas)
    np.testing.assert_allclose(output.objective.detach(), expected, rtol=1e-5)
    assert len(set(weights.round(6).tolist())) == 2

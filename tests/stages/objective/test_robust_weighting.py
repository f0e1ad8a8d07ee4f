"""Weights by trust: the objective from its formula, fixed weights where trust and margin are 1, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import make_batch

from betakd_stages.energies import ENERGIES
from betakd_stages.errors import ConfigError
from betakd_stages.objective import Objective, ObjectiveOutput
from betakd_stages.objective_building import build_objective
from betakd_stages.statistics import Head
from betakd_stages.targets import TeacherTargets

TRUST = torch.tensor([0.25, 0.0, 1.0])
NUM_TOKENS = torch.tensor([3, 1, 2])
SAMPLE_INDEX = torch.repeat_interleave(torch.arange(3), NUM_TOKENS)


class Scene:
    """Three samples of 3, 1 and 2 tokens, everything kept."""

    def __init__(self, teacher_scale: float = 1.0) -> None:
        self.batch = make_batch(7, num_tokens=6)
        self.teacher_logits = self.batch.teacher_logits * teacher_scale
        self.targets = TeacherTargets.from_logits(
            self.teacher_logits, self.batch.gold_ids, temperatures=(0.5, 1.0, 5.0), sample_index=SAMPLE_INDEX
        )

    def objective(self, objective: Objective, trust: torch.Tensor | None = TRUST) -> ObjectiveOutput:
        result: ObjectiveOutput = objective(
            self.batch.hidden, Head(self.batch.weight), replace(self.targets, trust=trust)
        )
        return result


def robust(energies: list[Any], **settings: Any) -> Objective:
    torch.manual_seed(0)
    return build_objective(energies=energies, weighting="robust", weighting_settings=settings)


def test_the_objective_is_cross_entropy_plus_beta_trust_and_margin_times_energy() -> None:
    scene = Scene()
    output = scene.objective(robust([("fkl", {})], beta=7.0))
    for sample in range(3):
        expected, tokens = 0.0, np.flatnonzero(SAMPLE_INDEX.numpy() == sample)
        for token in tokens:
            p = oracles.softmax(scene.teacher_logits[token].numpy())
            q = oracles.softmax(scene.batch.student_logits[token])
            largest, second = np.sort(p)[::-1][:2]
            gated = (largest - second) * oracles.kl(p, q)
            expected += (-np.log(q[scene.batch.gold_ids[token]]) + 7 * float(TRUST[sample]) * gated) / len(tokens)
        assert output.objective[sample].item() == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(output.betas[:, 0], 7 * TRUST.numpy())


@pytest.mark.parametrize("energy", sorted(ENERGIES))
def test_where_trust_and_margin_are_one_it_is_the_fixed_weight(energy: str) -> None:
    """A teacher that is all but certain of one token has the margin 1 within rounding."""
    scene = Scene(teacher_scale=200.0)
    assert float(scene.targets.margin().min()) > 1 - 1e-9
    torch.manual_seed(0)
    fixed = build_objective(energies=[(energy, {})], weighting="fixed", weighting_settings={"beta": 10.0})
    found = scene.objective(robust([(energy, {})]), trust=torch.ones(3)).objective
    torch.testing.assert_close(found, scene.objective(fixed, trust=None).objective, rtol=1e-8, atol=1e-10)


def test_a_teacher_that_is_not_believed_leaves_the_labels_alone() -> None:
    scene = Scene()
    output = scene.objective(robust([("fkl", {}), ("rkl", {})]), trust=torch.zeros(3))
    assert torch.equal(output.objective, output.cross_entropy)


def test_channels_have_betas_and_energies_gates_of_their_own() -> None:
    scene = Scene()
    objective = robust([("fkl", {"confidence_gate": 0.0}), ("rkl", {})], beta={"fkl": 2.0, "rkl": 4.0})
    output = scene.objective(objective)
    np.testing.assert_allclose(output.betas, TRUST[:, None] * torch.tensor([[2.0, 4.0]]))
    plain = build_objective(energies=[("fkl", {}), ("rkl", {})], weighting="fixed")
    ungated = scene.objective(plain, trust=None).energies
    torch.testing.assert_close(output.energies[:, 0], ungated[:, 0])
    assert (output.energies[:, 1] < ungated[:, 1]).all()


def test_trust_may_be_an_input_of_instance_weighting_too() -> None:
    objective = build_objective(energies=[("fkl", {})], weighting="instance", weighting_inputs=["trust", "margin"])
    scene = Scene()
    found = objective.inputs(replace(scene.targets, trust=TRUST), NUM_TOKENS, {}, {})
    torch.testing.assert_close(found[:, 0], TRUST)


def test_what_is_missing_or_too_much_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'robust' takes its own inputs \(trust\), but margin are named: name none"):
        build_objective(energies=[("fkl", {})], weighting="robust", weighting_inputs=["margin"])
    with pytest.raises(ConfigError, match="weighting input 'trust' is not in the batch: give the targets how far"):
        Scene().objective(robust([("fkl", {})]), trust=None)
    with pytest.raises(ConfigError, match=r"beta is \[-1.0\]: give weights of 0 or more"):
        robust([("fkl", {})], beta=-1.0)

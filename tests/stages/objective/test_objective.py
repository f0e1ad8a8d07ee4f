"""The whole objective: reduction, accumulation, gradients, presence, and the errors a user can cause."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import make_batch
from torch import Tensor

from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.features import FeatureStatistics
from betakd_stages.objective import Objective, ObjectiveOutput, require_finite
from betakd_stages.objective_building import build_objective
from betakd_stages.statistics import Head
from betakd_stages.targets import TeacherTargets

NUM_TOKENS = [3, 1, 2]
TEACHER_SIZE, STUDENT_SIZE = 5, 4


class Scene:
    """Three samples of 3, 1 and 2 tokens; the second has no image."""

    def __init__(self) -> None:
        self.batch = make_batch(3, num_tokens=sum(NUM_TOKENS))
        self.sample_index = torch.repeat_interleave(torch.arange(3), torch.tensor(NUM_TOKENS))
        generator = torch.Generator().manual_seed(0)
        self.teacher_features = {"vision": torch.randn(3, TEACHER_SIZE, generator=generator).double() * 4 + 2}
        self.student_features = {"vision": torch.randn(3, STUDENT_SIZE, generator=generator).double().requires_grad_()}
        self.present = {"vision": torch.tensor([True, False, True])}
        self.hidden = self.batch.hidden.clone().requires_grad_()
        self.weight = self.batch.weight.clone().requires_grad_()

    def build(self, **settings: Any) -> Objective:
        torch.manual_seed(0)
        statistics = FeatureStatistics(torch.full((TEACHER_SIZE,), 2.0), torch.full((TEACHER_SIZE,), 4.0))
        defaults: dict[str, Any] = {
            "energies": [("fkl", {}), ("cosine_probs", {})],
            "features": ["vision"],
            "teacher_features": {"vision": statistics},
            "student_feature_sizes": {"vision": STUDENT_SIZE},
        }
        return build_objective(**{**defaults, **settings})

    def targets(self, samples: list[int]) -> tuple[TeacherTargets, Tensor]:
        rows = torch.cat([(self.sample_index == sample).nonzero().flatten() for sample in samples])
        index = torch.repeat_interleave(
            torch.arange(len(samples)), torch.tensor([NUM_TOKENS[sample] for sample in samples])
        )
        targets = TeacherTargets.from_logits(
            self.batch.teacher_logits[rows],
            self.batch.gold_ids[rows],
            top_k=8,
            temperatures=(1.0, 5.0),  # what ctkd can reach
            sample_index=index,
            num_samples=len(samples),
        )
        return targets, rows

    def run(self, objective: Objective, samples: list[int] | None = None) -> ObjectiveOutput:
        chosen = [0, 1, 2] if samples is None else samples
        targets, rows = self.targets(chosen)

        def pick(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: values[chosen] for name, values in features.items()}

        return objective(
            self.hidden[rows],
            Head(self.weight),
            targets,
            pick(self.student_features),
            pick(self.teacher_features),
            pick(self.present),
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_energies_are_means_over_the_tokens_of_each_sample(scene: Scene) -> None:
    output = scene.run(scene.build())
    targets, _ = scene.targets([0, 1, 2])
    for sample in range(3):
        tokens = (scene.sample_index == sample).nonzero().flatten().tolist()
        cross_entropy, fkl, entropy, student_entropy = [], [], [], []
        for token in tokens:
            teacher, student = scene.batch.teacher_logits[token].numpy(), scene.batch.student_logits[token]
            kept = targets.ids[token].numpy()
            cross_entropy.append(-oracles.log_softmax(student)[scene.batch.gold_ids[token]])
            point = oracles.point(teacher, student, student, kept, int(scene.batch.gold_ids[token]))
            fkl.append(oracles.kl(point.p, point.q))
            entropy.append(oracles.entropy(teacher))
            student_entropy.append(oracles.entropy(student))
        np.testing.assert_allclose(output.cross_entropy[sample].detach(), np.mean(cross_entropy))
        np.testing.assert_allclose(output.energies[sample, 0].detach(), np.mean(fkl))
        np.testing.assert_allclose(output.teacher_entropy[sample], np.mean(entropy))
        np.testing.assert_allclose(output.student_entropy[sample], np.mean(student_entropy))
    assert not output.student_entropy.requires_grad


def test_the_feature_energy_is_the_squared_error_of_the_projected_student(scene: Scene) -> None:
    objective = scene.build()
    output = scene.run(objective)
    projection = objective.features["vision"].projection
    weight, bias = projection.weight.detach().double().numpy(), projection.bias.detach().double().numpy()  # type: ignore[union-attr, operator]
    for sample in (0, 2):
        projected = weight @ scene.student_features["vision"][sample].detach().numpy() + bias
        wanted = (scene.teacher_features["vision"][sample].numpy() - 2.0) / 4.0
        np.testing.assert_allclose(output.energies[sample, 2].detach(), ((projected - wanted) ** 2).mean(), rtol=1e-5)
    assert output.present.tolist() == [[True, True, True], [True, True, False], [True, True, True]]
    assert output.energies[1, 2].item() == 0.0
    assert output.betas[1, 2].item() == 0.0


@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("weighting", ["fixed", "task", "instance"])
def test_accumulating_one_sample_at_a_time_gives_the_batch_and_its_gradients(
    scene: Scene, reduction: str, weighting: str
) -> None:
    objective = scene.build(reduction=reduction, weighting=weighting)
    if weighting == "instance":
        torch.nn.init.normal_(objective.weighting.network[2].weight)  # type: ignore[index, union-attr]
    leaves = [scene.hidden, scene.weight, scene.student_features["vision"], *objective.parameters()]
    whole = scene.run(objective)
    whole_gradients = torch.autograd.grad(whole.total / whole.count, leaves)
    parts = [scene.run(objective, [sample]) for sample in range(3)]
    count = sum(float(part.count) for part in parts)
    assert count == float(whole.count) == (3 if reduction == "sample" else 6)
    loss = torch.stack([part.total for part in parts]).sum() / count
    torch.testing.assert_close(loss, whole.total / whole.count)
    for found, expected in zip(torch.autograd.grad(loss, leaves), whole_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_token_reduction_is_the_mean_over_all_tokens(scene: Scene) -> None:
    objective = scene.build(energies=[], features=[], reduction="token", weighting="fixed")
    output = scene.run(objective)
    student = scene.batch.student_logits
    tokens = [-oracles.log_softmax(student[n])[scene.batch.gold_ids[n]] for n in range(6)]
    np.testing.assert_allclose(float((output.total / output.count).detach()), np.mean(tokens))


@pytest.mark.parametrize(
    ("weighting", "own"),
    [
        ("fixed", set()),
        ("task", {"weighting.raw"}),
        (
            "instance",
            {f"weighting.network.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")},
        ),
    ],
)
@pytest.mark.parametrize(
    ("energy", "learned"),
    [
        ("fkl", set()),
        ("taid", set()),
        ("ctkd", {"energies.ctkd.raw"}),
        (
            "ctkd_mlp",
            {f"energies.ctkd_mlp.network.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")},
        ),
    ],
)
def test_exactly_these_parameters_receive_gradients(
    scene: Scene, weighting: str, own: set[str], energy: str, learned: set[str]
) -> None:
    objective = scene.build(weighting=weighting, energies=[(energy, {}), ("cosine_probs", {})])
    objective.advance(1.0)  # ctkd's temperature gets no gradient before the first step
    if energy == "ctkd_mlp":
        torch.nn.init.normal_(objective.energies["ctkd_mlp"].network[2].weight)  # type: ignore[index, union-attr]
    if weighting == "instance":
        torch.nn.init.normal_(objective.weighting.network[2].weight)  # type: ignore[index, union-attr]
    output = scene.run(objective)
    (output.total / output.count).backward()
    trained = {name for name, parameter in objective.named_parameters() if parameter.grad is not None}
    assert trained == own | learned | {"features.vision.projection.weight", "features.vision.projection.bias"}
    for parameter in objective.parameters():
        assert parameter.grad is None or bool(parameter.grad.any())
    for leaf in (scene.hidden, scene.weight, scene.student_features["vision"]):
        assert leaf.grad is not None
    assert not bool(scene.student_features["vision"].grad[1].any())  # type: ignore[index]


def test_what_fills_an_absent_feature_reaches_no_number_and_no_gradient(scene: Scene) -> None:
    objective = scene.build(weighting="instance")
    clean = scene.run(objective)
    scene.teacher_features["vision"][1] = torch.nan
    dirty = scene.run(objective)
    torch.testing.assert_close(dirty.objective, clean.objective)
    dirty.total.backward()
    for parameter in objective.parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


def test_a_sample_without_supervised_tokens_counts_for_nothing(scene: Scene) -> None:
    objective = scene.build()
    targets, rows = scene.targets([0, 1, 2])
    padded = replace(targets, num_samples=4)
    features = [
        {"vision": torch.cat([values["vision"], values["vision"][:1]])}
        for values in (scene.student_features, scene.teacher_features, scene.present)
    ]
    output = objective(scene.hidden[rows], Head(scene.weight), padded, *features)
    plain = scene.run(objective)
    torch.testing.assert_close(output.total, plain.total)
    assert output.sample_weights.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert output.objective[3].item() == 0.0


def test_a_batch_without_any_supervised_token_has_an_objective_of_zero_with_gradients(scene: Scene) -> None:
    objective = scene.build(features=[])
    targets = TeacherTargets.from_logits(torch.zeros(0, 40), torch.zeros(0, dtype=torch.int64), top_k=8, num_samples=2)
    output = objective(scene.hidden[:0], Head(scene.weight), targets)
    assert output.objective.tolist() == [0.0, 0.0]
    assert float(output.count) == 0.0
    output.total.backward()
    assert scene.weight.grad is not None
    assert not bool(scene.weight.grad.any())


def test_a_frozen_student_feature_is_an_error_in_training_only(scene: Scene) -> None:
    scene.student_features = {"vision": scene.student_features["vision"].detach()}
    objective = scene.build()
    with pytest.raises(ConfigError, match=r"feature channel 'vision' trains no weight of the student.*unfreeze it"):
        scene.run(objective)
    objective.eval()
    scene.run(objective)


def test_optimizer_groups_hold_every_parameter_once(scene: Scene) -> None:
    objective = scene.build(weighting="instance")
    groups = objective.parameter_groups(weighting_lr=0.5, lr=1e-3, weight_decay=0.1)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in objective.parameters())
    assert groups[0]["lr"] == 0.5
    assert groups[0]["weight_decay"] == 0.0
    assert groups[1] == {"params": list(objective.features.parameters()), "lr": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_objective_that_is_not_finite_is_an_error_naming_the_samples_and_the_terms(
    scene: Scene, value: float
) -> None:
    objective = scene.build()
    output = scene.run(objective)
    require_finite(output, ["a", "b", "c"], objective.channels)
    sick = replace(output, objective=torch.tensor([1.0, value, 2.0]))
    last = objective.channels[-1]
    energies, betas, weights = output.energies.clone(), output.betas.clone(), output.cross_entropy_weights.clone()
    energies[1, -1], betas[1, -1], weights[1] = value, value, value
    energies[0, 0] = value  # of a sample whose objective is finite: not to blame
    for changes, terms in (
        ({}, "their sum"),
        ({"cross_entropy": torch.tensor([1.0, value, 1.0])}, "cross_entropy"),
        ({"energies": energies}, f"energy/{last}"),
        ({"betas": betas, "cross_entropy_weights": weights}, f"cross_entropy_weight, beta/{last}"),
    ):
        expected = f"not finite for 1 of 3 samples (b), because of {terms}: verify the cache"
        with pytest.raises(MismatchError, match=re.escape(expected)):
            require_finite(replace(sick, **changes), ["a", "b", "c"], objective.channels)


def test_an_energy_may_stand_alone_without_the_labels(scene: Scene) -> None:
    alone = scene.run(scene.build(energies=[("fkl", {})], features=[], weighting="fixed", ce_weight=0.0))
    torch.testing.assert_close(alone.objective, alone.energies[:, 0])
    assert bool((alone.cross_entropy > 0).all())


def test_wrong_names_are_errors_that_list_the_valid_ones(scene: Scene) -> None:
    with pytest.raises(ConfigError, match=r"energy 'fkl' is named twice: name each energy once"):
        scene.build(energies=[("fkl", {}), ("fkl", {"temperature": 2.0})])
    with pytest.raises(ConfigError, match=r"unknown student feature 'prompt': choose one of vision"):
        scene.build(features=["prompt"])
    with pytest.raises(ConfigError, match=r"unknown reduction 'mean': choose one of sample, token"):
        scene.build(reduction="mean")
    with pytest.raises(ConfigError, match=r"unknown weighting input 'colour': choose among vision, teacher_entropy"):
        scene.build(weighting="instance", weighting_inputs=["colour"])
    with pytest.raises(ConfigError, match=r"weighting 'task' takes no inputs, but margin are named: name none"):
        scene.build(weighting="task", weighting_inputs=["margin"])


def test_missing_or_misshapen_features_are_errors(scene: Scene) -> None:
    objective = scene.build()
    features = scene.teacher_features
    scene.teacher_features = {}
    with pytest.raises(MismatchError, match=r"feature channel 'vision' got no teacher feature, only none: cache it"):
        scene.run(objective)
    scene.teacher_features = {"vision": features["vision"][:, :3]}
    with pytest.raises(MismatchError, match=r"'vision' got a teacher feature of size 3, expected 5: build"):
        scene.run(objective)

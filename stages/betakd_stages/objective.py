"""The objective of a batch: cross-entropy, energies on tokens, feature channels, and the weighting over them.

Energies are averaged over the tokens of a sample before they are weighted, so every sample really has its own weight.
Nothing is divided by the batch: the output carries the sum and its count, and whoever accumulates divides once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from betakd_stages.choices import build, pick
from betakd_stages.energies import Energy, make_energy
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.features import FeatureChannel, FeatureStatistics
from betakd_stages.objective_output import ObjectiveOutput, require_finite
from betakd_stages.statistics import Head, Needs, student_statistics
from betakd_stages.targets import TeacherTargets
from betakd_stages.weighting_inputs import WeightingInputs
from betakd_stages.weightings import WEIGHTINGS, GradientWeighting, Weighting, make_weighting


class Objective(nn.Module):
    """All that is trained beside the student: learned weights, feature projections, energies with parameters."""

    def __init__(
        self,
        energies: Mapping[str, Energy],
        features: Mapping[str, FeatureChannel],
        weighting: Weighting,
        inputs: WeightingInputs,
        reduction: str = "sample",
    ) -> None:
        super().__init__()
        self.energies = nn.ModuleDict(energies)
        self.features = nn.ModuleDict(features)
        self.weighting = weighting
        self.inputs = inputs
        self._sample_weights = pick("reduction", REDUCTIONS, reduction)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels: energies by name, features as `feature:NAME`."""
        return channel_names(self.energies.keys(), self.features.keys())

    def forward(
        self,
        hidden: Tensor,
        head: Head,
        targets: TeacherTargets,
        student_features: Mapping[str, Tensor] | None = None,
        teacher_features: Mapping[str, Tensor] | None = None,
        feature_present: Mapping[str, Tensor] | None = None,
    ) -> ObjectiveOutput:
        """The objective of N supervised tokens with last hidden states `hidden` `[N, D]`, those that predict them.

        Features are `[B, size]` or `[B, places, size]` by name; `feature_present` bool `[B]` says which samples have
        one (all, by default).
        """
        student_features, teacher_features = student_features or {}, teacher_features or {}
        with torch.autocast(hidden.device.type, enabled=False):
            statistics = student_statistics(hidden, head, targets, self.needs(targets))
            num_tokens = torch.bincount(targets.sample_index, minlength=targets.num_samples)
            supervised = num_tokens > 0
            present = _presence(teacher_features, feature_present or {}, supervised)
            columns = [_sample_means(energy(statistics, targets), targets, num_tokens) for energy in self._energies()]
            columns += [
                _feature_energy(channel, name, student_features, teacher_features, present)
                for name, channel in self.features.items()
            ]
            cross_entropy = _sample_means(statistics.cross_entropy(), targets, num_tokens)
            energies = torch.stack(columns, dim=1) if columns else cross_entropy.new_zeros(targets.num_samples, 0)
            masks = [supervised] * len(self.energies) + [present[name] for name in self.features]
            mask = torch.stack(masks, dim=1) if masks else torch.zeros_like(energies, dtype=torch.bool)
            weighed = self.weighting(
                cross_entropy, energies, mask, self.inputs(targets, num_tokens, teacher_features, present)
            )
        return ObjectiveOutput(
            objective=weighed.objective.masked_fill(~supervised, 0.0),
            sample_weights=self._sample_weights(num_tokens).to(cross_entropy.dtype),
            cross_entropy=cross_entropy,
            energies=energies,
            present=mask,
            betas=weighed.betas,
            cross_entropy_weights=weighed.cross_entropy_weights,
            teacher_entropy=_sample_means(targets.entropy(), targets, num_tokens),
            student_entropy=_sample_means(statistics.entropy(), targets, num_tokens),
        )

    def needs(self, targets: TeacherTargets) -> Needs:
        """The union of what the energies need, and the tail's mean for the student's entropy in the log."""
        needs = Needs(tail_means=True)
        for energy in self._energies():
            needs = needs | energy.needs(targets)
        return needs

    @property
    def remaining_batches(self) -> int:
        """How many batches must go through this module without gradients before training starts (manual weights)."""
        return self.weighting.remaining_batches

    def backward(self, output: ObjectiveOutput, parameters: Sequence[nn.Parameter], divisor: float | Tensor) -> None:
        """Adds the gradients of `output.total / divisor` to every trained parameter.

        For PCGrad and GradNorm those of `parameters`, the student's, are combined from the channels' gradients; for
        all other weightings this is one backward pass.
        """
        if not isinstance(self.weighting, GradientWeighting):
            (output.total / divisor).backward()
            return
        losses = output.channel_totals() / divisor
        chosen = [*parameters, *self.parameters()]
        gradients = [
            list(torch.autograd.grad(loss, chosen, retain_graph=True, materialize_grads=True)) for loss in losses
        ]
        unweighted = output.mean_losses()
        for parameter, gradient in zip(chosen, self.weighting.combine(gradients, unweighted), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def advance(self, progress: float) -> None:
        """To be called once after each optimizer step with the fraction of the run that is done, 0 to 1."""
        for energy in self._energies():
            energy.advance(progress)

    def parameter_groups(self, *, weighting_lr: float, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """The optimizer's groups that hold every trainable parameter of this module, empty ones left out.

        Weighting: the absolute `weighting_lr`, no weight decay (a decayed weight is a prior nobody asked for).
        Feature projections and energies: the student's `lr`; weight decay on the projections only.
        """
        groups = [
            {"params": list(self.weighting.parameters()), "lr": weighting_lr, "weight_decay": 0.0},
            {"params": list(self.features.parameters()), "lr": lr, "weight_decay": weight_decay},
            {"params": list(self.energies.parameters()), "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def _energies(self) -> list[Energy]:
        return list(self.energies.values())  # type: ignore[arg-type]


def build_objective(
    *,
    energies: Sequence[tuple[str, Mapping[str, Any]]] = (),
    features: Sequence[str | tuple[str, Mapping[str, Any]]] = (),
    weighting: str = "task",
    weighting_settings: Mapping[str, Any] | None = None,
    weighting_inputs: Sequence[str] | None = None,
    ce_weight: float = 1.0,
    reduction: str = "sample",
    semantics: str = "paper",
    teacher_features: Mapping[str, FeatureStatistics] | None = None,
    student_feature_sizes: Mapping[str, int] | None = None,
) -> Objective:
    """The objective of plain arguments.

    `energies` are names with settings; `features` names of features, with settings or without; `weighting_inputs`
    what instance weighting sees (by default every teacher feature the cache holds). `teacher_features` are the
    cache's, `student_feature_sizes` the student's. `semantics` is that of the energies, and of the weighting unless
    its settings name another. Raises ConfigError for names or settings that do not exist.
    """
    teacher_features, student_feature_sizes = teacher_features or {}, student_feature_sizes or {}
    gate = pick("weighting", WEIGHTINGS, weighting).confidence_gate
    built_energies: dict[str, Energy] = {}
    for name, settings in energies:
        if name in built_energies:
            raise ConfigError(f"energy {name!r} is named twice: name each energy once")
        built_energies[name] = make_energy(name, semantics, **{"confidence_gate": gate, **settings})
    built_features = {}
    for feature in features:
        name, settings = (feature, {}) if isinstance(feature, str) else feature
        student_size = pick("student feature", student_feature_sizes, name)
        teacher = pick("cached teacher feature", teacher_features, name)
        fixed = {"name": name, "student_size": student_size, "teacher": teacher}
        built_features[name] = build("feature", name, FeatureChannel, settings, fixed)
    inputs = WeightingInputs(_input_names(weighting, weighting_inputs, teacher_features), teacher_features)
    built_weighting = make_weighting(
        weighting,
        channel_names(built_energies, built_features),
        inputs.size,
        input_mean=inputs.mean,
        input_deviation=inputs.deviation,
        cross_entropy_weight=ce_weight,
        **{"semantics": semantics, **(weighting_settings or {})},
    )
    return Objective(built_energies, built_features, built_weighting, inputs, reduction)


def _input_names(
    weighting: str, names: Sequence[str] | None, teacher_features: Mapping[str, FeatureStatistics]
) -> Sequence[str]:
    """The inputs named, or every pooled teacher feature the cache holds; the weighting's own where it has some."""
    factory = pick("weighting", WEIGHTINGS, weighting)
    if factory.uses_inputs and not factory.own_inputs:
        return tuple(teacher_features) if names is None else names
    if names:
        taken = f"its own inputs ({', '.join(factory.own_inputs)})" if factory.own_inputs else "no inputs"
        raise ConfigError(f"weighting {weighting!r} takes {taken}, but {', '.join(names)} are named: name none")
    return factory.own_inputs


def channel_names(energies: Iterable[str], features: Iterable[str]) -> tuple[str, ...]:
    """The channels' names in the order of the columns `[B, C]`."""
    return (*energies, *(f"feature:{name}" for name in features))


FOCUS_SUFFIX = "_focus"
"""`vision_focus` holds the places of `vision` that the teacher attends to most, int64 `[B, J]`."""

REDUCTIONS = {
    "sample": lambda num_tokens: num_tokens > 0,
    "token": lambda num_tokens: num_tokens,
}
"""From the tokens of each sample `[B]` to how much it counts: every sample alike (the paper), or every token."""


def _sample_means(values: Tensor, targets: TeacherTargets, num_tokens: Tensor) -> Tensor:
    """Means `[B]` over the tokens of each sample of values `[N]`; 0 for a sample without tokens."""
    sums = values.new_zeros(targets.num_samples).index_add(0, targets.sample_index, values)
    return sums / num_tokens.clamp(min=1)


def _presence(
    teacher_features: Mapping[str, Tensor], given: Mapping[str, Tensor], supervised: Tensor
) -> dict[str, Tensor]:
    """Which samples have each feature, bool `[B]`; a sample without supervised tokens has none."""
    return {name: given.get(name, torch.ones_like(supervised)) & supervised for name in teacher_features}


def _feature_energy(
    channel: nn.Module,
    name: str,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
) -> Tensor:
    """The energy `[B]` of a feature channel, 0 where the sample has no such feature."""
    for side, features in (("student", student), ("teacher", teacher)):
        if name not in features:
            raise MismatchError(
                f"feature channel {name!r} got no {side} feature, only {', '.join(features) or 'none'}: "
                f"cache it, or leave the channel out"
            )
    mask = present[name]
    # Absent features are zeroed before the channel, so that whatever fills them cannot reach a gradient.
    student_rows, teacher_rows = (
        side[name].masked_fill(~mask.view(-1, *[1] * (side[name].ndim - 1)), 0.0) for side in (student, teacher)
    )
    energy: Tensor = channel(student_rows, teacher_rows, teacher.get(f"{name}{FOCUS_SUFFIX}"))
    return energy.masked_fill(~mask, 0.0)


__all__ = ["Objective", "ObjectiveOutput", "build_objective", "require_finite"]

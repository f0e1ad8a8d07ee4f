"""The objective of a batch: cross-entropy, energies on tokens, feature channels, and the weighting over them.

Energies are averaged over the tokens of a sample before they are weighted, so every sample really has its own weight.
Nothing is divided by the batch: the output carries the sum and its count, and whoever accumulates divides once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from betakd_stages.choices import pick
from betakd_stages.energies import Energy
from betakd_stages.ensemble.names import owner, plain
from betakd_stages.ensemble.prior import Experts, gibbs_mixture
from betakd_stages.errors import MismatchError
from betakd_stages.features import FeatureChannel
from betakd_stages.objective_output import ObjectiveOutput, require_finite
from betakd_stages.statistics import Head, Needs, StudentStatistics, student_statistics
from betakd_stages.targets import TeacherTargets
from betakd_stages.weighting_inputs import WeightingInputs
from betakd_stages.weightings import GradientWeighting, Weighting


class Objective(nn.Module):
    """All that is trained beside the student: learned weights, feature projections, energies with parameters."""

    def __init__(
        self,
        energies: Mapping[str, Energy],
        features: Mapping[str, FeatureChannel],
        weighting: Weighting,
        inputs: WeightingInputs,
        reduction: str = "sample",
        combine: str = "mixture",
    ) -> None:
        super().__init__()
        self.energies = nn.ModuleDict(energies)
        self.features = nn.ModuleDict(features)
        self.weighting = weighting
        self.inputs = inputs
        self._sample_weights = pick("reduction", REDUCTIONS, reduction)
        self._is_prior = pick("combine", COMBINATIONS, combine)
        self.owners: Tensor
        self.register_buffer("owners", torch.tensor([owner(name) for name in self.channels]).long(), persistent=False)

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
        experts: Experts | None = None,
    ) -> ObjectiveOutput:
        """The objective of N supervised tokens with last hidden states `hidden` `[N, D]`, those that predict them.

        Features are `[B, size]` or `[B, places, size]` by name; `feature_present` bool `[B]` says which samples have
        one (all, by default). `experts` are the teachers that `targets` is the mixture of, where each has channels of
        its own.
        """
        student_features, teacher_features = student_features or {}, teacher_features or {}
        with torch.autocast(hidden.device.type, enabled=False):
            statistics, of_tokens = self.token_energies(hidden, head, targets, experts)
            num_tokens = torch.bincount(targets.sample_index, minlength=targets.num_samples)
            supervised = num_tokens > 0
            present = _presence(teacher_features, feature_present or {}, supervised)
            columns = [_sample_means(energy, targets, num_tokens) for energy in of_tokens.values()]
            columns += [
                _feature_energy(channel, name, student_features, teacher_features, present)
                for name, channel in self.features.items()
            ]
            cross_entropy = _sample_means(statistics.cross_entropy(), targets, num_tokens)
            energies = torch.stack(columns, dim=1) if columns else cross_entropy.new_zeros(targets.num_samples, 0)
            masks = [supervised if experts is None else experts.held[:, owner(name)] & supervised for name in of_tokens]
            masks += [present[name] for name in self.features]
            mask = torch.stack(masks, dim=1) if masks else torch.zeros_like(energies, dtype=torch.bool)
            weighed = self.weighting(
                cross_entropy, energies, mask, self.inputs(targets, num_tokens, teacher_features, present)
            )
            objective, betas = weighed.objective, weighed.betas
            if self._is_prior and experts is not None:
                terms = weighed.channel_terms
                if not self.weighting.has_log_beta:
                    terms = terms - 0.5 * torch.where(betas > 0, betas, 1.0).log()  # no constant inside a mixture
                mixed, shares = gibbs_mixture(terms, self.owners, experts.weights)
                objective, betas = weighed.cross_entropy_terms + mixed, betas * shares[:, self.owners]
        return ObjectiveOutput(
            objective=objective.masked_fill(~supervised, 0.0),
            sample_weights=self._sample_weights(num_tokens).to(cross_entropy.dtype),
            cross_entropy=cross_entropy,
            energies=energies,
            present=mask,
            betas=betas,
            cross_entropy_weights=weighed.cross_entropy_weights,
            teacher_entropy=_sample_means(targets.entropy(), targets, num_tokens),
            student_entropy=_sample_means(statistics.entropy(), targets, num_tokens),
        )

    def token_energies(
        self, hidden: Tensor, head: Head, targets: TeacherTargets, experts: Experts | None = None
    ) -> tuple[StudentStatistics, dict[str, Tensor]]:
        """Statistics of the student, and every energy `[N]` by name.

        Where the teachers count one by one there is a pass through the head for each, at what that teacher keeps; the
        statistics are the first's, whose cross-entropy and entropy are of the whole vocabulary, as anybody's.
        """
        if experts is None:
            statistics = student_statistics(hidden, head, targets, self.needs(targets))
            return statistics, {name: energy(statistics, targets) for name, energy in self.energies.items()}
        of_teachers = [
            (each, student_statistics(hidden, head, each, self.needs(each, teacher)))
            for teacher, each in enumerate(experts.targets)
        ]
        energies = {}
        for name, energy in self.energies.items():
            theirs, own = of_teachers[owner(name)]
            energies[name] = energy(own, theirs)
        return of_teachers[0][1], energies

    def needs(self, targets: TeacherTargets, teacher: int | None = None) -> Needs:
        """The union of what the energies need, or those of one teacher, and the tail's mean for the student's entropy
        in the log."""
        needs = Needs(tail_means=True)
        for name, energy in zip(self.energies, self._energies(), strict=True):
            if teacher in (None, owner(name)):
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

COMBINATIONS = {"mixture": False, "channels": False, "prior": True}
"""What several teachers are: one mixture, channels of their own, or the same with their priors mixed (the last)."""


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
    for side, key, features in (("student", plain(name), student), ("teacher", name, teacher)):
        if key not in features:
            raise MismatchError(
                f"feature channel {name!r} got no {side} feature, only {', '.join(features) or 'none'}: "
                f"cache it, or leave the channel out"
            )
    mask = present[name]
    # Absent features are zeroed before the channel, so that whatever fills them cannot reach a gradient.
    student_rows, teacher_rows = (
        side[key].masked_fill(~mask.view(-1, *[1] * (side[key].ndim - 1)), 0.0)
        for side, key in ((student, plain(name)), (teacher, name))
    )
    energy: Tensor = channel(student_rows, teacher_rows, teacher.get(f"{name}{FOCUS_SUFFIX}"))
    return energy.masked_fill(~mask, 0.0)


__all__ = ["Objective", "ObjectiveOutput", "require_finite"]

"""What the objective of a batch consists of, for training and for the log."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from betakd_stages.errors import MismatchError


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """The objective of B samples with C channels, in the order of `Objective.channels`."""

    objective: Tensor
    """`[B]`, one number per sample; 0 for a sample without supervised tokens."""
    sample_weights: Tensor
    """`[B]`, how much each sample counts: 1, or its number of tokens; 0 without supervised tokens."""
    cross_entropy: Tensor
    """`[B]`, mean over the tokens of each sample, unweighted."""
    energies: Tensor
    """`[B, C]`, mean over the tokens of each sample, unweighted; 0 where a channel is absent."""
    present: Tensor
    """bool `[B, C]`, where a channel applies to a sample."""
    betas: Tensor
    """`[B, C]`, the weights; 0 where a channel is absent."""
    cross_entropy_weights: Tensor
    """`[B]`."""
    teacher_entropy: Tensor
    """`[B]`, mean over the tokens of each sample, in nats at temperature 1."""
    student_entropy: Tensor
    """`[B]`, the same of the student, without gradient."""

    @property
    def total(self) -> Tensor:
        """The weighted sum over the batch. Divide by the sum of `count` over everything that is accumulated."""
        return (self.objective * self.sample_weights).sum()

    @property
    def count(self) -> Tensor:
        """What `total` is to be divided by: the number of samples, or of tokens."""
        return self.sample_weights.sum()

    def channel_totals(self) -> Tensor:
        """The weighted sums over the batch of the cross-entropy and of each channel, `[1 + C]`, without the terms in
        log beta."""
        cross_entropy = (self.cross_entropy_weights * self.cross_entropy * self.sample_weights).sum()
        return torch.cat([cross_entropy.unsqueeze(0), (self.betas * self.energies).T @ self.sample_weights])

    def mean_losses(self) -> Tensor:
        """Means over the samples that have them of the cross-entropy and of each channel, `[1 + C]`, unweighted."""
        has_tokens = self.sample_weights > 0
        mask = torch.cat([has_tokens.unsqueeze(1), self.present], dim=1)
        values = torch.cat([self.cross_entropy.unsqueeze(1), self.energies], dim=1)
        return (values * mask).sum(dim=0) / mask.sum(dim=0).clamp(min=1)


def require_finite(output: ObjectiveOutput, sample_names: Sequence[str], channels: Sequence[str]) -> None:
    """Raises MismatchError naming the samples whose objective is not finite, and the terms that are not finite there.

    Synchronises with the device.
    """
    bad = (~torch.isfinite(output.objective)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(sample_names[index] for index in bad[:8])
        raise MismatchError(
            f"the objective is not finite for {len(bad)} of {len(sample_names)} samples ({names}), "
            f"because of {', '.join(_terms_not_finite(output, bad, channels)) or 'their sum'}: "
            "verify the cache, or lower the learning rate"
        )


def _terms_not_finite(output: ObjectiveOutput, samples: Sequence[int], channels: Sequence[str]) -> list[str]:
    """The terms of these samples of which at least one is not finite, as metrics.jsonl calls them."""
    terms = {"cross_entropy": output.cross_entropy, "cross_entropy_weight": output.cross_entropy_weights}
    for index, channel in enumerate(channels):
        terms |= {f"energy/{channel}": output.energies[:, index], f"beta/{channel}": output.betas[:, index]}
    return [name for name, values in terms.items() if not bool(torch.isfinite(values[samples]).all())]

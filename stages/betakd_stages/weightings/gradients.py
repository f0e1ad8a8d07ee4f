"""Baselines that combine the gradients of the channels instead of their values: PCGrad and GradNorm.

Both treat the cross-entropy as one more channel, the first. They need the gradient of each channel at the student's
parameters, so one backward pass per channel; `Objective.backward` runs them. Neither is linear, so with them, unlike
elsewhere, accumulating batches is not the same as one large batch.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from betakd_stages.errors import ConfigError
from betakd_stages.weightings.base import Weighting, WeightingOutput

Gradient = list[Tensor]
"""One tensor for each parameter."""


class _RefuseBackward(torch.autograd.Function):
    """The identity, whose backward is an error: a plain backward pass would silently be that of equal weights."""

    @staticmethod
    def forward(ctx: Any, objective: Tensor) -> Tensor:
        return objective.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ConfigError(
            "this weighting combines the channels' gradients, but the loss was differentiated as one number: "
            "call Objective.backward in place of loss.backward, or choose another weighting"
        )


class GradientWeighting(Weighting):
    """Weights of 1, or learned from gradients, for the cross-entropy and the C channels."""

    def __init__(self, channels: Sequence[str], input_size: int, **settings: Any) -> None:
        super().__init__(channels, input_size, **settings)
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(1 + len(self.channels)))

    def forward(self, cross_entropy: Tensor, energies: Tensor, present: Tensor, inputs: Tensor) -> WeightingOutput:
        betas = (self.weights[1:] * present).to(energies.dtype)
        weights = (self.cross_entropy_weight * self.weights[0]).to(cross_entropy.dtype).expand_as(cross_entropy)
        terms = _RefuseBackward.apply(weights * cross_entropy), _RefuseBackward.apply(betas * energies)
        return WeightingOutput(*terms, betas, weights)

    @abstractmethod
    def combine(self, gradients: Sequence[Gradient], losses: Tensor) -> Gradient:
        """The gradient to train with, from those of the weighted channels and their unweighted losses `[1 + C]`."""


class PCGrad(GradientWeighting):
    """Projects each channel's gradient off those of the others that it conflicts with, in random order, and sums
    (arXiv 2001.06782)."""

    def combine(self, gradients: Sequence[Gradient], losses: Tensor) -> Gradient:
        projected = []
        for index, own in enumerate(gradients):
            current = own
            for other in torch.randperm(len(gradients)).tolist():
                if other == index:
                    continue
                agreement = _dot(current, gradients[other])
                square = _dot(gradients[other], gradients[other])
                # Only a conflict, a negative product, is projected away; a zero gradient conflicts with nothing.
                share = torch.where(agreement < 0, agreement / square, 0.0)
                current = [part - share * away for part, away in zip(current, gradients[other], strict=True)]
            projected.append(current)
        return _sum(projected)


class GradNorm(GradientWeighting):
    """Learns weights that bring the gradient norms of the channels together, faster where a channel's loss has fallen
    less (arXiv 1711.02257)."""

    def __init__(
        self,
        channels: Sequence[str],
        input_size: int,
        *,
        learning_rate: float = 0.025,
        restoring_force: float = 1.5,
        **settings: Any,
    ) -> None:
        super().__init__(channels, input_size, **settings)
        if not learning_rate > 0:
            raise ConfigError(f"learning_rate is {learning_rate}: give a number above 0")
        self.learning_rate, self.restoring_force = learning_rate, restoring_force
        self.first_losses: Tensor
        self.register_buffer("first_losses", torch.zeros_like(self.weights))

    def combine(self, gradients: Sequence[Gradient], losses: Tensor) -> Gradient:
        norms = torch.stack([_dot(gradient, gradient).sqrt() for gradient in gradients]).to(self.weights.dtype)
        losses = losses.detach().to(self.weights.dtype)
        if not bool(self.first_losses.any()):
            self.first_losses.copy_(losses)
        remaining = losses / self.first_losses.clamp(min=1e-12)
        targets = norms.mean() * (remaining / remaining.mean().clamp(min=1e-12)) ** self.restoring_force
        # The gradient of the sum of |norm - target| at each weight, targets held constant.
        slopes = torch.sign(norms - targets) * norms / self.weights
        self.weights.sub_(self.learning_rate * slopes).clamp_(min=1e-3)
        self.weights.mul_(len(self.weights) / self.weights.sum())
        return _sum(gradients)


def _dot(left: Gradient, right: Gradient) -> Tensor:
    return torch.stack([(one.float() * other.float()).sum() for one, other in zip(left, right, strict=True)]).sum()


def _sum(gradients: Sequence[Gradient]) -> Gradient:
    return [torch.stack(parts).sum(dim=0) for parts in zip(*gradients, strict=True)]

"""The feature channel: the student's feature, projected, against the teacher's, standardised."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from betakd_stages.errors import ConfigError, MismatchError


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Mean and deviation of one teacher feature over the whole cache, per dimension, float `[F]` each."""

    mean: Tensor
    deviation: Tensor

    @property
    def size(self) -> int:
        """F."""
        return self.mean.shape[0]


class FeatureChannel(nn.Module):
    """Mean squared error `[B]` between a learned projection of the student's pooled feature and the teacher's,
    standardised by cache-wide statistics.

    The projection sits on the student: one on the teacher can collapse to zero, which -log beta rewards. A student
    whose feature is constant keeps an energy near 1, whatever the projection learns.
    Differs from the source: the paper's code projects the teacher.
    """

    def __init__(self, name: str, student_size: int, teacher: FeatureStatistics) -> None:
        super().__init__()
        self.name = name
        self.projection = nn.Linear(student_size, teacher.size)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", teacher.mean.float())
        # A dimension that is constant over the cache stays 0 instead of dividing by 0.
        self.register_buffer("deviation", teacher.deviation.float().masked_fill(teacher.deviation == 0, 1.0))

    def standardise(self, teacher: Tensor) -> Tensor:
        """The teacher's feature `[B, F]` with mean 0 and deviation 1 over the cache."""
        return (teacher.to(self.mean.dtype) - self.mean) / self.deviation

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The energy of each sample `[B]`, of features `[B, S]` and `[B, F]`.

        Raises ConfigError in training where no student weight would get a gradient, MismatchError for a wrong size.
        """
        if self.training and torch.is_grad_enabled() and not student.requires_grad:
            raise ConfigError(
                f"feature channel {self.name!r} trains no weight of the student, because what makes this feature is "
                f"frozen: unfreeze it, or choose another feature"
            )
        for side, found, expected in (
            ("student", student.shape[-1], self.projection.in_features),
            ("teacher", teacher.shape[-1], self.projection.out_features),
        ):
            if found != expected:
                raise MismatchError(
                    f"feature channel {self.name!r} got a {side} feature of size {found}, expected {expected}: "
                    f"build the objective from the features of this cache and student"
                )
        projected = self.projection(student.to(self.mean.dtype))
        return (projected - self.standardise(teacher)).square().mean(dim=-1)

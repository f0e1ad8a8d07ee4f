"""Feature channels: the student's feature, projected, against the teacher's, standardised.

A feature is one vector per sample `[B, S]` ("pooled"), or several `[B, P, S]` at P places of the image: the cells of a
grid ("grid:4x4"), or every visual token ("tokens").
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from betakd_cache import FeatureLayout
from betakd_stages.encoding import Encoder
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.feature_layouts import POOLED, TOKENS, grid_cells

SIDES = ("student", "teacher")


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Mean and deviation of one teacher feature over the whole cache, per dimension, float `[F]` each."""

    mean: Tensor
    deviation: Tensor

    @property
    def size(self) -> int:
        """F."""
        return self.mean.shape[0]


def arrange(tokens: Tensor, layout: str) -> Tensor:
    """Visual tokens `[B, T, S]` as a feature: pooled `[B, S]`, grid `[B, rows * columns, S]`, or the tokens themselves.

    Raises ConfigError for an unknown layout, and for a grid of tokens that do not form a square.
    """
    if layout == POOLED:
        return tokens.mean(dim=1)
    if layout == TOKENS:
        return tokens
    rows, columns = grid_cells(layout)
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ConfigError(f"layout {layout!r} needs a square of visual tokens, found {tokens.shape[1]}: choose tokens")
    image = tokens.transpose(1, 2).unflatten(2, (side, side))
    cells = nn.functional.adaptive_avg_pool2d(image, (rows, columns))
    return cells.flatten(2).transpose(1, 2)


def feature_layout(layout: str, encoder: Encoder, num_focus: int) -> FeatureLayout:
    """What a cache holds of a teacher's feature in this layout, with `num_focus` places noted unless it is pooled.

    Raises ConfigError for a layout that the teacher's images do not have.
    """
    if layout == POOLED:
        return FeatureLayout()
    num_tokens = encoder.num_image_tokens
    if num_tokens is None:
        raise ConfigError(
            f"layout {layout!r} needs the same number of visual tokens for every image, which this teacher "
            f"(model type {encoder.config.model_type!r}) does not have: choose vision (pooled)"
        )
    if num_focus > num_tokens:
        raise ConfigError(
            f"vision_focus is {num_focus}, but an image is {num_tokens} visual tokens of this teacher: "
            "choose at most as many"
        )
    return FeatureLayout(layout, arrange(torch.zeros(1, num_tokens, 1), layout).shape[1], num_focus)


def require_places(num_teacher_places: int, layout: str, num_student_tokens: int | None) -> None:
    """Nothing; raises MismatchError where a student of so many visual tokens (None: it depends on the image) has no
    feature of the cache's layout."""
    if layout == POOLED:
        return
    if num_student_tokens is None:
        raise MismatchError(
            f"the cache holds vision as {layout}, the student's images differ in their number of visual tokens: cache "
            "it pooled (--features vision,prompt), or leave the feature out"
        )
    num_student_places = arrange(torch.zeros(1, num_student_tokens, 1), layout).shape[1]
    if layout == TOKENS and num_student_places != num_teacher_places:
        raise MismatchError(
            f"the cache holds vision at {num_teacher_places} visual tokens, the student has {num_student_tokens}: "
            "cache a grid, which every student has (--features vision:grid:4x4,prompt), or leave the feature out"
        )


class FeatureChannel(nn.Module):
    """Mean squared error `[B]` between a learned projection of the student's feature and the teacher's, standardised
    by cache-wide statistics.

    The projection sits on the student: one on the teacher can collapse to zero, which -log beta rewards. A student
    whose feature is constant keeps an energy near 1, whatever the projection learns.
    Differs from the source: the paper's code projects the teacher, as `project="teacher"` does.
    """

    def __init__(
        self,
        name: str,
        student_size: int,
        teacher: FeatureStatistics,
        *,
        project: str = "student",
        focus: bool = False,
    ) -> None:
        """`focus` adds the error at the places the teacher attends to most, whose indices the cache holds, to that
        over all places (Align-KD)."""
        super().__init__()
        if project not in SIDES:
            raise ConfigError(f"project is {project!r}: choose student or teacher")
        self.name, self.project, self.focus = name, project, focus
        self.sizes = {"student": student_size, "teacher": teacher.size}
        other = SIDES[1 - SIDES.index(project)]
        self.projection = nn.Linear(self.sizes[project], self.sizes[other])
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", teacher.mean.float())
        # A dimension that is constant over the cache stays 0 instead of dividing by 0.
        self.register_buffer("deviation", teacher.deviation.float().masked_fill(teacher.deviation == 0, 1.0))

    def standardise(self, teacher: Tensor) -> Tensor:
        """The teacher's feature `[..., F]` with mean 0 and deviation 1 over the cache."""
        return (teacher.to(self.mean.dtype) - self.mean) / self.deviation

    def forward(self, student: Tensor, teacher: Tensor, focus: Tensor | None = None) -> Tensor:
        """The energy of each sample `[B]`, of features `[B, S]` and `[B, F]`, or `[B, P, S]` and `[B, P, F]`; `focus`
        int64 `[B, J]` are the places the teacher attends to most.

        Raises ConfigError in training where no student weight would get a gradient, MismatchError for a wrong shape.
        """
        self._require_fitting(student, teacher, focus)
        student, teacher = student.to(self.mean.dtype), self.standardise(teacher)
        if self.project == "student":
            errors = (self.projection(student) - teacher).square().mean(dim=-1)
        else:
            errors = (student - self.projection(teacher)).square().mean(dim=-1)
        energy = errors.reshape(len(errors), -1).mean(dim=1)
        if focus is None or not self.focus:
            return energy
        return energy + errors.gather(1, focus).mean(dim=1)

    def _require_fitting(self, student: Tensor, teacher: Tensor, focus: Tensor | None) -> None:
        if self.training and torch.is_grad_enabled() and not student.requires_grad:
            raise ConfigError(
                f"feature channel {self.name!r} trains no weight of the student, because what makes this feature is "
                f"frozen: unfreeze it, or choose another feature"
            )
        for side, feature in zip(SIDES, (student, teacher), strict=True):
            if feature.shape[-1] != self.sizes[side]:
                raise MismatchError(
                    f"feature channel {self.name!r} got a {side} feature of size {feature.shape[-1]}, expected "
                    f"{self.sizes[side]}: build the objective from the features of this cache and student"
                )
        if student.shape[:-1] != teacher.shape[:-1]:
            raise MismatchError(
                f"feature channel {self.name!r} got {list(student.shape[1:-1])} places of the student and "
                f"{list(teacher.shape[1:-1])} of the teacher: give both the layout of the cache, a grid where their "
                f"numbers of visual tokens differ"
            )
        if self.focus and (focus is None or teacher.ndim != 3):
            raise MismatchError(
                f"feature channel {self.name!r} with focus needs several places and the indices of those the teacher "
                f"attends to most: cache them (layout tokens), or leave focus out"
            )

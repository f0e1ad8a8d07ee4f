"""The tail of a distribution between the temperatures of a grid.

The tail's OWN logsumexp is interpolated, cubic Hermite in 1 / temperature with its mean energy as slope: 1.7 % median
error and never a negative mass. Interpolating the total and subtracting the kept part would give a negative tail for
more than half of the tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from betakd_stages.errors import MismatchError

Temperature = float | Tensor
"""A number, or one temperature per token, float `[N]`, which then gets a gradient."""


def interpolate_tail(
    grid: Sequence[float], tail_lse: Tensor, tail_energy: Tensor, temperature: Temperature
) -> tuple[Tensor, Tensor]:
    """The tail's logsumexp and mean energy at a temperature, each `[N]`; -inf and 0 where the tail is empty.

    `tail_lse` and `tail_energy` are `[N, M]` at the M temperatures of `grid`, in any order.
    Raises MismatchError, naming the temperatures held, for a temperature outside the grid.
    """
    if not isinstance(temperature, Tensor) and temperature in grid:
        column = grid.index(temperature)
        return tail_lse[:, column], tail_energy[:, column]
    require_inside(grid, temperature)
    order = sorted(range(len(grid)), key=lambda column: 1.0 / grid[column])
    knots = torch.tensor([1.0 / grid[column] for column in order], dtype=tail_lse.dtype, device=tail_lse.device)
    inverse = _per_token(temperature, tail_lse).reciprocal()
    right = torch.searchsorted(knots, inverse.detach()).clamp(1, max(len(grid) - 1, 1))
    if len(grid) == 1:
        # A learned temperature that is exactly the only one held.
        return tail_lse[:, 0], tail_energy[:, 0]
    empty = torch.isneginf(tail_lse[:, 0])
    values = tail_lse.masked_fill(empty.unsqueeze(1), 0.0)[:, order]
    slopes = -tail_energy[:, order]
    left = right - 1
    value, slope = _hermite(
        inverse, (knots[left], knots[right]), _pair(values, left, right), _pair(slopes, left, right)
    )
    return value.masked_fill(empty, -torch.inf), -slope.masked_fill(empty, 0.0)


def require_inside(grid: Sequence[float], temperature: Temperature) -> None:
    """Raises MismatchError unless every temperature lies between the smallest and the largest of the grid."""
    if isinstance(temperature, Tensor):
        if temperature.numel() == 0:
            return
        low, high = (float(bound) for bound in torch.aminmax(temperature.detach()))
    else:
        low = high = float(temperature)
    # float32 rounding of a learned temperature that sits on the end of the grid is not a mistake of the user's.
    if not (min(grid) * (1 - 1e-6) <= low and high <= max(grid) * (1 + 1e-6)):
        held = ", ".join(f"{value:g}" for value in sorted(grid))
        asked = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        raise MismatchError(
            f"temperature {asked} asked for, but the cache holds {held}: choose one between the smallest and the "
            f"largest of these, or cache the teacher again with --temperatures that include it"
        )


def _per_token(temperature: Temperature, like: Tensor) -> Tensor:
    """The temperature as `[N]` in the dtype and on the device of `like` `[N, M]`."""
    if isinstance(temperature, Tensor):
        return temperature.to(like.dtype)
    return torch.full_like(like[:, 0], temperature)


def _pair(columns: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The entries `[N]` of `columns` `[N, M]` at the two ends of each token's interval."""
    return columns.gather(1, left.unsqueeze(1)).squeeze(1), columns.gather(1, right.unsqueeze(1)).squeeze(1)


def _hermite(
    x: Tensor, knots: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The cubic through two values with two slopes, and its derivative, at `x`; all `[N]`."""
    width = knots[1] - knots[0]
    t = (x - knots[0]) / width
    rise = values[1] - values[0]
    a = width * slopes[0] - rise
    b = rise - width * slopes[1]
    value = values[0] + t * rise + t * (1 - t) * (a * (1 - t) + b * t)
    slope = (rise + (1 - 2 * t) * (a * (1 - t) + b * t) + t * (1 - t) * (b - a)) / width
    return value, slope

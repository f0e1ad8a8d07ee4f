"""One pass over the vocabulary, in tiles, that never holds `[N, V]`: the backward pass makes the tiles again.

All rows go through one tile of the head at a time, so the head's gradient is written once. Tiles that fit a budget of
bytes are kept for the backward pass instead; batches of short answers nearly always fit.

Legend: N tokens, K kept entries, M temperatures, D width of the head, W columns of a tile, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from betakd_stages.vocabulary_tiles import MASKED, InputGradients, PassPlan, Tiles

FLOOR = -1e28
"""Below any logit and above MASKED: what the running maximum starts from."""


class VocabularyPass(torch.autograd.Function):
    """(plan, hidden, weight, bias, learned temperatures) to kept logits `[N, K]` (0 at padding), gold logit `[N]`,
    tail logsumexp and tail mean `[N, M]`, mean and variance over the vocabulary `[N]` (0 unless asked for).

    Tail means carry no gradient. Outputs are float32, or float64 where the hidden states are.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: PassPlan, hidden: Tensor, weight: Tensor, bias: Tensor | None, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        tiles = Tiles(plan, hidden, weight, bias)
        kept_logits, gold_logit = tiles.zeros(*plan.ids.shape), tiles.zeros(tiles.num_tokens)
        tail, moments = _TailSums(plan, learned, tiles), _Moments(tiles)
        saved: list[Tensor] = []
        budget = plan.save_bytes if any(ctx.needs_input_grad) else 0
        for start, stop in tiles.spans():
            budget -= tiles.tile_bytes(start, stop)
            flat = tiles.logits(start, stop, fresh=budget >= 0)
            kept_at, gold_at = tiles.kept_positions(start, stop), tiles.gold_positions(start, stop)
            values = flat[kept_at]
            kept_logits = torch.where(kept_at < len(flat) - 1, values, kept_logits)
            gold_logit = torch.where(gold_at < len(flat) - 1, flat[gold_at], gold_logit)
            if plan.moments:
                moments.add(tiles.view(flat))
            flat[kept_at] = MASKED
            tail.add(tiles.view(flat))
            if budget >= 0:
                flat[kept_at] = values
                saved.append(flat)
        tail_lse, tail_mean = tail.result()
        ctx.plan, ctx.num_saved = plan, len(saved)
        ctx.save_for_backward(hidden, weight, bias, tail_lse, tail_mean, moments.mean, *saved, *learned)
        ctx.mark_non_differentiable(tail_mean)
        return (
            kept_logits,
            gold_logit,
            tail_lse,
            tail_mean,
            moments.mean.clone(),
            moments.squares / plan.vocabulary_size,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan: PassPlan = ctx.plan
        hidden, weight, bias, tail_lse, tail_mean, mean, *rest = ctx.saved_tensors
        saved, learned = rest[: ctx.num_saved], rest[ctx.num_saved :]
        kept_gradient, gold_gradient, lse_gradient, _, mean_gradient, variance_gradient = gradients
        tiles = Tiles(plan, hidden, weight, bias)
        tail = _TailGradient(plan, learned, tiles, tail_lse, lse_gradient)
        collected = InputGradients(tiles, ctx.needs_input_grad[1:4])
        slope = 2.0 / plan.vocabulary_size * variance_gradient
        offset = mean_gradient / plan.vocabulary_size - slope * mean
        for number, (start, stop) in enumerate(tiles.spans()):
            flat = saved[number] if number < len(saved) else tiles.logits(start, stop)
            flat_gradient = tiles.buffer("gradient", len(flat))
            kept_at, gold_at = tiles.kept_positions(start, stop), tiles.gold_positions(start, stop)
            tail.write(tiles.view(flat), kept_at, tiles.view(flat_gradient))
            if plan.moments:
                tiles.view(flat_gradient).add_(offset.unsqueeze(1)).addcmul_(tiles.view(flat), slope.unsqueeze(1))
            flat_gradient.scatter_add_(0, kept_at.flatten(), kept_gradient.flatten())
            flat_gradient.scatter_add_(0, gold_at, gold_gradient)
            collected.add(start, stop, tiles.view(flat), tiles.view(flat_gradient))
        learned_gradients = [
            -lse_gradient[:, column] * tail_mean[:, column] / temperature.square()
            for column, temperature in enumerate(learned, start=len(plan.temperatures))
        ]
        return (None, *collected.result(), *learned_gradients)


class _Moments:
    """Mean and sum of squared deviations over the tiles seen, `[N]`, merged pairwise so that nothing cancels."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.num_columns = 0
        self.mean, self.squares = tiles.zeros(tiles.num_tokens), tiles.zeros(tiles.num_tokens)

    def add(self, tile: Tensor) -> None:
        width = tile.shape[1]
        mean = tile.mean(dim=1)
        centred = torch.sub(tile, mean.unsqueeze(1), out=self.tiles.scratch(tile))
        squares = torch.linalg.vecdot(centred, centred)
        share = width / (self.num_columns + width)
        difference = mean - self.mean
        self.mean = self.mean + difference * share
        self.squares = self.squares + squares + difference.square() * (self.num_columns * share)
        self.num_columns += width


class _TailSums:
    """Running sums of exp((z - maximum) / temperature), and of z times that, over the masked tiles; all `[N, 1]`."""

    def __init__(self, plan: PassPlan, learned: tuple[Tensor, ...], tiles: Tiles) -> None:
        self.tiles = tiles
        self.scales = _scales(plan, learned)
        # The gradient of a learned temperature needs its mean.
        self.with_mean = [plan.tail_means or isinstance(scale, Tensor) for scale in self.scales]
        self.maximum = tiles.zeros(tiles.num_tokens, 1) + FLOOR
        self.sums = [tiles.zeros(tiles.num_tokens, 1) for _ in self.scales]
        self.firsts = [tiles.zeros(tiles.num_tokens, 1) for _ in self.scales]

    def add(self, tile: Tensor) -> None:
        maximum = torch.maximum(self.maximum, tile.amax(dim=1, keepdim=True))
        shift = self.maximum - maximum
        self.maximum = maximum
        powers = self.tiles.scratch(tile)
        for column, scale in enumerate(self.scales):
            if _is_half(self.scales, column):
                powers.square_()
            else:
                torch.sub(tile, maximum, out=powers).div_(scale).exp_()
            rescale = (shift / scale).exp_()
            self.sums[column] = self.sums[column] * rescale + powers.sum(dim=1, keepdim=True)
            if self.with_mean[column]:
                first = torch.linalg.vecdot(powers, tile).unsqueeze(1)
                self.firsts[column] = self.firsts[column] * rescale + first

    def result(self) -> tuple[Tensor, Tensor]:
        """The tail's logsumexp and mean, `[N, M]`; -inf and 0 where it is empty, means 0 too where none is wanted."""
        sums, scales = self.sums, self.scales
        lse = [total.log() + self.maximum / scale for total, scale in zip(sums, scales, strict=True)]
        means = [first / total for first, total in zip(self.firsts, sums, strict=True)]
        empty = sums[0] == 0
        return (
            torch.cat(lse, dim=1).masked_fill(empty, -torch.inf),
            torch.cat(means, dim=1).masked_fill(empty, 0.0),
        )


class _TailGradient:
    """The gradient of every column of the tail's logsumexp: the tail's softmax over the temperature."""

    def __init__(
        self, plan: PassPlan, learned: list[Tensor], tiles: Tiles, tail_lse: Tensor, lse_gradient: Tensor
    ) -> None:
        self.tiles = tiles
        self.scales = _scales(plan, learned)
        # An empty tail has no softmax: with -FLOOR in place of its logsumexp all its exponentials are 0.
        lse = tail_lse.masked_fill(torch.isneginf(tail_lse), -FLOOR)
        self.lse = list(lse.split(1, dim=1))
        self.coefficients = [
            gradient / scale for gradient, scale in zip(lse_gradient.split(1, dim=1), self.scales, strict=True)
        ]

    def write(self, tile: Tensor, kept_at: Tensor, out: Tensor) -> None:
        """Writes the gradient at the logits of a tile to `out`, 0 at the kept entries; the tile stays as it is."""
        flat = self.tiles.buffer("scratch", tile.numel() + 1)
        softmax = self.tiles.view(flat)
        out.zero_()
        for column, scale in enumerate(self.scales):
            if _is_half(self.scales, column):
                # Renormalised at each squaring, or a flat tail would underflow after three.
                factor = (2 * self.lse[column - 1] - self.lse[column]).clamp_(max=80.0).exp_()
                softmax.square_().mul_(factor)
            else:
                torch.div(tile, scale, out=softmax).sub_(self.lse[column]).exp_()
                # Kept entries may have overflowed: they are no part of this softmax.
                flat[kept_at] = 0.0
            out.addcmul_(softmax, self.coefficients[column])


def _scales(plan: PassPlan, learned: Sequence[Tensor]) -> list[float | Tensor]:
    """The temperatures of the M columns: numbers, then `[N, 1]`."""
    return [*plan.temperatures, *(temperature.unsqueeze(1) for temperature in learned)]


def _is_half(scales: list[float | Tensor], column: int) -> bool:
    """Whether the column's exponentials are the squares of those of the column before."""
    if column == 0:
        return False
    scale, before = scales[column], scales[column - 1]
    return isinstance(scale, float) and isinstance(before, float) and before == 2 * scale

"""The tiles of logits that a pass over the vocabulary works on, and the gradients it collects from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = -1e30
"""A logit that is not there. Finite, so that 0 * MASKED is 0."""
TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 32 * 2**20}
"""A tile's logits: in the processor's cache, or large enough for the launches of a GPU."""
MIN_TILE_COLUMNS = 8192


@dataclass(frozen=True, slots=True)
class PassPlan:
    """What one pass computes, apart from the tensors that get gradients."""

    ids: Tensor
    """int64 `[N, K]`."""
    kept: Tensor
    """bool `[N, K]`, False at padding."""
    gold_ids: Tensor
    """int64 `[N]`."""
    vocabulary_size: int
    logit_scale: float
    soft_cap: float | None
    temperatures: tuple[float, ...]
    """The given ones, largest first, so that half of one comes by squaring; learned ones follow."""
    tail_means: bool
    moments: bool
    tile_columns: int | None
    """None: as many as make `TILE_BYTES`, at least `MIN_TILE_COLUMNS`."""
    save_bytes: int
    """How many bytes of logit tiles the backward pass may find instead of computing them again."""


def operand_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What the matrix products take for hidden states of `dtype`; they sum in float32, or float64 for float64.

    bfloat16 where the GPU multiplies it into float32; elsewhere, and for float16 whose gradients would underflow, the
    operands are widened.
    """
    if dtype == torch.float64:
        return torch.float64
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    if dtype == torch.bfloat16 and is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


class Tiles:
    """The logits of one tile after another, in reused buffers.

    A flat tile has one element more than `[N, W]`: ids outside the tile land there, so that no index has to be
    selected, which would wait for the device.
    """

    def __init__(self, plan: PassPlan, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.plan, self.hidden, self.weight, self.bias = plan, hidden, weight, bias
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.num_tokens = len(hidden)
        self.operand_dtype = operand_dtype(hidden.device, hidden.dtype)
        self.operand = hidden.to(self.operand_dtype)
        tile_bytes = TILE_BYTES.get(hidden.device.type, TILE_BYTES["cuda"])
        columns = max(MIN_TILE_COLUMNS, tile_bytes // max(1, self.num_tokens * self.dtype.itemsize))
        self.columns = min(plan.tile_columns or columns, plan.vocabulary_size)
        self.rows = torch.arange(self.num_tokens, device=hidden.device)
        self._buffers: dict[str, Tensor] = {}

    def spans(self) -> Iterator[tuple[int, int]]:
        """First and last-plus-one column of each tile; no tile where there are no tokens."""
        if self.num_tokens == 0:
            return
        for start in range(0, self.plan.vocabulary_size, self.columns):
            yield start, min(start + self.columns, self.plan.vocabulary_size)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros in the dtype of the logits."""
        return torch.zeros(shape, dtype=self.dtype, device=self.hidden.device)

    def empty(self, *shape: int) -> Tensor:
        """Memory in the dtype of the logits."""
        return torch.empty(shape, dtype=self.dtype, device=self.hidden.device)

    def buffer(self, name: str, size: int) -> Tensor:
        """A flat buffer, the same memory at every call."""
        if name not in self._buffers:
            self._buffers[name] = self.empty(self.num_tokens * self.columns + 1)
        return self._buffers[name][:size]

    def scratch(self, tile: Tensor) -> Tensor:
        """A buffer shaped as the tile `[N, W]`."""
        return self.buffer("scratch", tile.numel()).view(tile.shape)

    def view(self, flat: Tensor) -> Tensor:
        """The tile `[N, W]` of a flat tile."""
        return flat[:-1].view(self.num_tokens, -1)

    def tile_bytes(self, start: int, stop: int) -> int:
        """Size of a flat tile in memory."""
        return (self.num_tokens * (stop - start) + 1) * self.dtype.itemsize

    def weight_tile(self, start: int, stop: int) -> Tensor:
        """Rows `[W, D]` of the head as the matrix products take them."""
        return self.weight[start:stop].to(self.operand_dtype)

    def logits(self, start: int, stop: int, fresh: bool = False) -> Tensor:
        """The logits of a tile, flat, in memory of their own where `fresh`."""
        size = self.num_tokens * (stop - start) + 1
        flat = self.empty(size) if fresh else self.buffer("logits", size)
        tile = self.view(flat)
        self.multiply(self.operand, self.weight_tile(start, stop).T, out=tile)
        if self.bias is not None:
            tile.add_(self.bias[start:stop].to(self.dtype))
        if self.plan.logit_scale != 1.0:
            tile.mul_(self.plan.logit_scale)
        if self.plan.soft_cap is not None:
            tile.div_(self.plan.soft_cap).tanh_().mul_(self.plan.soft_cap)
        return flat

    def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """The matrix product in `out`, accumulated in the dtype of the logits."""
        if left.dtype == self.dtype:
            return torch.mm(left, right, out=out)
        return torch.mm(left, right, out_dtype=self.dtype, out=out)

    def kept_positions(self, start: int, stop: int) -> Tensor:
        """Where the kept ids `[N, K]` stand in the flat tile; padding and ids outside the tile: its last element."""
        return self._positions(self.plan.ids, self.plan.kept, self.rows.unsqueeze(1), start, stop)

    def gold_positions(self, start: int, stop: int) -> Tensor:
        """Where the labels `[N]` stand in the flat tile; outside the tile: its last element."""
        inside = torch.ones_like(self.plan.gold_ids, dtype=torch.bool)
        return self._positions(self.plan.gold_ids, inside, self.rows, start, stop)

    def _positions(self, ids: Tensor, wanted: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        width = stop - start
        inside = wanted & (ids >= start) & (ids < stop)
        return torch.where(inside, rows * width + (ids - start), self.num_tokens * width)


class InputGradients:
    """The gradients of hidden states, head and bias, as far as they are needed."""

    def __init__(self, tiles: Tiles, needed: Sequence[bool]) -> None:
        self.tiles = tiles
        weight, bias = tiles.weight, tiles.bias
        self.hidden = tiles.zeros(*tiles.hidden.shape) if needed[0] else None
        self.weight = torch.empty_like(weight) if needed[1] else None
        self.bias = torch.empty_like(bias) if needed[2] and bias is not None else None
        num_written = tiles.plan.vocabulary_size if tiles.num_tokens else 0
        for gradient in (self.weight, self.bias):
            if gradient is not None:
                gradient[num_written:] = 0.0

    def add(self, start: int, stop: int, tile: Tensor, gradient: Tensor) -> None:
        """Adds what a tile `[N, W]` contributes, given the gradient at its logits, which is overwritten."""
        tiles = self.tiles
        if tiles.plan.soft_cap is not None:
            slope = torch.mul(tile, 1.0 / tiles.plan.soft_cap, out=tiles.scratch(tile)).square_().neg_().add_(1.0)
            gradient.mul_(slope)
        if tiles.plan.logit_scale != 1.0:
            gradient.mul_(tiles.plan.logit_scale)
        if self.bias is not None:
            self.bias[start:stop] = gradient.sum(dim=0)
        operand = gradient.to(tiles.operand_dtype)
        if self.hidden is not None:
            self.hidden += tiles.multiply(operand, tiles.weight_tile(start, stop), out=torch.empty_like(self.hidden))
        if self.weight is not None:
            rows = self.weight[start:stop]
            if rows.dtype == tiles.dtype:
                tiles.multiply(operand.T, tiles.operand, out=rows)
            else:
                rows.copy_(tiles.multiply(operand.T, tiles.operand, out=tiles.empty(*rows.shape)))

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of (hidden, weight, bias) in their dtypes."""
        hidden = None if self.hidden is None else self.hidden.to(self.tiles.hidden.dtype)
        return hidden, self.weight, self.bias

"""From full teacher logits to kept entries and a tail: what a cache record holds, computed exactly on any device."""

from typing import Any

import torch
from torch import Tensor

LEAST_TAIL = 2.0**-24
"""Half a unit in the last place of 1 in float32, in which log probabilities travel."""


def truncate_logits(
    logits: Tensor,
    gold_ids: Tensor,
    *,
    top_k: int | None,
    top_p: float | None,
    top_p_temperature: float,
    temperatures: tuple[float, ...],
) -> dict[str, Tensor]:
    """The columns of `TeacherTargets` of logits `[N, V]` and gold ids `[N]`, K being `top_k` or V.

    One `topk`, no sort of the vocabulary (unless everything may be kept) and one masked copy of the logits.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    vocabulary_size = logits.shape[1]
    width = vocabulary_size if top_k is None else min(top_k, vocabulary_size)
    largest = logits.amax(dim=1)
    relative = logits - largest.unsqueeze(1)
    values, ids = relative.topk(width, dim=1)
    gold_logit = relative.gather(1, gold_ids.unsqueeze(1)).squeeze(1)
    ids, values = _with_gold(ids, values, gold_ids, gold_logit)
    kept = _reaching(relative, ids, values, gold_ids, top_p, top_p_temperature)
    ids, values, kept = _compact(ids, values, kept)
    mean = logits.mean(dim=1)
    # Not torch.std: it warns about a batch without tokens.
    deviation = (logits - mean.unsqueeze(1)).square_().mean(dim=1).sqrt()
    # Ids at padding repeat the first kept one, so masking them again changes nothing.
    tail = relative.scatter_(1, torch.where(kept, ids, ids[:, :1]), -torch.inf)
    tail_lse, tail_energy = _tail_columns(tail, temperatures)
    return {
        "ids": ids.masked_fill(~kept, 0),
        "kept": kept,
        "logits": values.masked_fill(~kept, -torch.inf),
        "gold_logit": gold_logit,
        "tail_lse": tail_lse,
        "tail_energy": tail_energy,
        "logit_max": largest,
        "logit_mean": mean,
        "logit_std": deviation,
    }


def truncate_log_probabilities(
    ids: Tensor,
    values: Tensor,
    gold_ids: Tensor,
    gold_value: Tensor,
    *,
    top_p: float | None,
    vocabulary_size: int,
) -> dict[str, Any]:
    """The same columns as far as log probabilities tell: float64 `values` `[N, K]` of the most likely `ids`, the first
    the most, and those of the gold ids `[N]`. Ids from `vocabulary_size` on are padding, left out with their mass.

    The tail is what is left of 1; where that is less than `LEAST_TAIL`, so rounding, it is taken for that.
    """
    left = 1 - values.exp().sum(dim=1)
    padding_mass = values.exp().masked_fill(ids < vocabulary_size, 0.0).sum(dim=1)
    values, order = values.masked_fill(ids >= vocabulary_size, -torch.inf).sort(dim=1, descending=True, stable=True)
    largest, valid_mass = values[:, :1].clone(), values.exp().sum(dim=1)
    ids, values = _with_gold(ids.gather(1, order), values, gold_ids, gold_value)
    share = values.exp() / (1 - padding_mass).unsqueeze(1)
    is_gold = ids == gold_ids.unsqueeze(1)
    kept = (share.cumsum(dim=1) - share < (torch.inf if top_p is None else top_p)) & ~torch.isneginf(values) | is_gold
    ids, values, kept = _compact(ids, values, kept)
    tail = (left + valid_mass - values.exp().masked_fill(~kept, 0.0).sum(dim=1)).clamp(min=LEAST_TAIL)
    tail = tail.masked_fill(kept.sum(dim=1) >= vocabulary_size, 0.0)
    relative = (values - largest).float()
    return {
        "ids": ids.masked_fill(~kept, 0),
        "kept": kept,
        "logits": relative.masked_fill(~kept, -torch.inf),
        "gold_logit": (gold_value - largest[:, 0]).float(),
        "tail_lse": (tail.log().unsqueeze(1) - largest).float(),
        "tail_energy": None,
        "logit_max": None,
        "logit_mean": None,
        "logit_std": None,
    }


def _with_gold(ids: Tensor, values: Tensor, gold_ids: Tensor, gold_logit: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and logits `[N, K]` in which the gold entry stands last where it was not among the largest."""
    missing = ~(ids == gold_ids.unsqueeze(1)).any(dim=1)
    ids[:, -1] = torch.where(missing, gold_ids, ids[:, -1])
    values[:, -1] = torch.where(missing, gold_logit, values[:, -1])
    return ids, values


def _reaching(
    relative: Tensor, ids: Tensor, values: Tensor, gold_ids: Tensor, top_p: float | None, temperature: float
) -> Tensor:
    """Which of the entries `[N, K]` to keep: the smallest set that holds `top_p` of the mass, and the gold entry."""
    if top_p is None:
        return torch.ones_like(ids, dtype=torch.bool)
    lse = (relative / temperature).exp_().sum(dim=1, keepdim=True).log()  # no overflow: the largest is 0
    probabilities = torch.exp(values / temperature - lse)
    mass_before = probabilities.cumsum(dim=1) - probabilities
    return (mass_before < top_p) | (ids == gold_ids.unsqueeze(1))


def _compact(ids: Tensor, values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same columns `[N, K]` with the kept entries first, in their order."""
    order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)
    return ids.gather(1, order), values.gather(1, order), kept.gather(1, order)


def _tail_columns(tail: Tensor, temperatures: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Logsumexp and mean energy `[N, M]` of logits `[N, V]` that are -inf outside the tail, which it overwrites.

    Few passes over `[N, V]`, because on a CPU they are what a token costs.
    """
    largest = tail.amax(dim=1, keepdim=True)
    is_empty = torch.isneginf(largest)
    shifted = tail - largest.masked_fill(is_empty, 0.0)
    logits = tail.masked_fill_(torch.isneginf(tail), 0.0)
    tail_lse, tail_energy = [], []
    for temperature in temperatures:
        weights = (shifted / temperature).exp_()
        total = weights.sum(dim=1)
        tail_lse.append(largest[:, 0] / temperature + total.log())
        energy = -weights.mul_(logits).sum(dim=1) / total
        tail_energy.append(energy.masked_fill(is_empty[:, 0], 0.0))
    return torch.stack(tail_lse, dim=1), torch.stack(tail_energy, dim=1)

"""From a cache's compact bytes to the tensors of a batch: the bytes travel to the device and are decoded there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from betakd_cache import CompactBatch, Manifest
from betakd_cache.codec import GROUP_SIZE, gap_table
from betakd_cache.layout import NUM_EXACT_RANKS, focus_name
from betakd_stages.targets import TeacherTargets


@dataclass(frozen=True, slots=True)
class CachedBatch:
    """What the cache holds about B samples with N supervised tokens."""

    targets: TeacherTargets
    features: dict[str, Tensor]  # float32 [B, D] or [B, P, D], 0 where absent; NAME_focus int64 [B, J]
    present: dict[str, Tensor]  # bool [B]


def decode_batch(batch: CompactBatch, manifest: Manifest, device: torch.device) -> CachedBatch:
    """The batch as tensors on `device`; equal to `CompactBatch.decode()`."""
    arrays = {name: _tensor(values, device) for name, values in batch.arrays.items()}
    token_counts = _tensor(np.diff(batch.token_ptr), device)
    num_samples = len(batch.token_ptr) - 1
    entry_counts = arrays["tok_n"].long()
    width = int(batch.arrays["tok_n"].max(initial=0))
    kept = torch.arange(width, device=device) < entry_counts[:, None]
    gold_ids = _ids(arrays, "token_ids")
    ids = torch.zeros(kept.shape, dtype=torch.int64, device=device)
    ids[kept] = _ids(arrays, "ids")
    gold_gap = arrays["gold_gap"].float()
    gaps = torch.full(kept.shape, torch.inf, device=device)
    gaps[kept] = _gaps(arrays, device)
    if not manifest.token_rule.exact:
        _restore_exact_ranks(gaps, kept, arrays, device)
        gaps = torch.where(kept & (ids == gold_ids[:, None]), gold_gap[:, None], gaps)
    names = batch.feature_names()
    targets = TeacherTargets(
        ids=ids,
        kept=kept,
        logits=-gaps,
        gold_ids=gold_ids,
        gold_logit=-gold_gap,
        temperatures=manifest.token_rule.temperatures,
        tail_lse=arrays["tail_lse"].float(),
        tail_energy=arrays["tail_energy"].float(),
        vocabulary_size=manifest.vocabulary_size,
        **{name: _moment(arrays, name) for name in ("logit_max", "logit_mean", "logit_std")},
        sample_index=torch.repeat_interleave(torch.arange(num_samples, device=device), token_counts),
        num_samples=num_samples,
    )
    features = {name: _feature(arrays, name) for name in names}
    features |= {focus_name(name): arrays[focus_name(name)].long() for name in batch.focus_names()}
    return CachedBatch(targets, features, {name: arrays[f"present/{name}"].bool() for name in names})


def labels_only(gold_ids: Tensor, sample_index: Tensor, num_samples: int, vocabulary_size: int) -> TeacherTargets:
    """The targets [N, 1] of a teacher that is certain of every label: what plain fine-tuning has."""
    zeros = torch.zeros(len(gold_ids), 1, device=gold_ids.device)
    return TeacherTargets(
        ids=gold_ids[:, None],
        kept=torch.ones_like(zeros, dtype=torch.bool),
        logits=zeros,
        gold_ids=gold_ids,
        gold_logit=zeros[:, 0],
        temperatures=(1.0,),
        tail_lse=torch.full_like(zeros, -torch.inf),
        tail_energy=zeros,
        vocabulary_size=vocabulary_size,
        logit_max=None,
        logit_mean=None,
        logit_std=None,
        sample_index=sample_index,
        num_samples=num_samples,
    )


def _tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; unsigned 16 bit, which torch hardly supports, as int32."""
    if values.dtype == np.uint16:
        signed = torch.from_numpy(np.array(values.view(np.int16))).to(device)
        return signed.int() & 0xFFFF
    return torch.from_numpy(np.array(values)).to(device)


def _ids(arrays: Mapping[str, Tensor], name: str) -> Tensor:
    high = arrays.get(f"{name}_high")
    return arrays[name].long() if high is None else arrays[name].long() | (high.long() << 16)


def _gaps(arrays: Mapping[str, Tensor], device: torch.device) -> Tensor:
    codes = arrays["gap"]
    return codes.float() if codes.is_floating_point() else _table(np.uint8, device)[codes.long()]


def _restore_exact_ranks(gaps: Tensor, kept: Tensor, arrays: Mapping[str, Tensor], device: torch.device) -> None:
    """Overwrite the gaps of ranks 2 to 4 by their finer codes, where a token has that many entries."""
    top = _table(np.uint16, device)[arrays["gap_top"].long()]
    num_ranks = min(NUM_EXACT_RANKS, gaps.shape[1] - 1)
    ranks = slice(1, 1 + num_ranks)
    gaps[:, ranks] = torch.where(kept[:, ranks], top[:, :num_ranks], gaps[:, ranks])


def _feature(arrays: Mapping[str, Tensor], name: str) -> Tensor:
    """A feature in float32; one in int8 is its codes times the scales of their groups."""
    stored = arrays[f"features/{name}"].float()
    if f"scales/{name}" not in arrays:
        return stored
    scales = arrays[f"scales/{name}"].float().repeat_interleave(GROUP_SIZE, dim=-1)
    return stored * scales[..., : stored.shape[-1]]


def _table(dtype: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(gap_table(np.dtype(dtype)).copy()).to(device)


def _moment(arrays: Mapping[str, Tensor], name: str) -> Tensor | None:
    return arrays[name].float() if name in arrays else None

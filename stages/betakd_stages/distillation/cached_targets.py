"""From a cache's compact bytes to the tensors of a batch: the bytes travel to the device and are decoded there."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from betakd_cache import CompactBatch, Manifest
from betakd_cache.codec import GROUP_SIZE, NUM_WIDE_RANKS, UNITS_PER_NAT, step_table
from betakd_cache.layout import focus_name
from betakd_stages.ensemble.prior import Experts
from betakd_stages.targets import TeacherTargets

OPTIONAL = ("tail_energy", "logit_max", "logit_mean", "logit_std")


@dataclass(frozen=True, slots=True)
class CachedBatch:
    """What the cache holds about B samples with N supervised tokens."""

    targets: TeacherTargets
    features: dict[str, Tensor]  # float32 [B, D] or [B, P, D], 0 where absent; NAME_focus int64 [B, J]
    present: dict[str, Tensor]  # bool [B]
    experts: Experts | None = None  # of several caches, where each teacher has channels of its own


def decode_batch(batch: CompactBatch, manifest: Manifest, device: torch.device) -> CachedBatch:
    """The batch as tensors on `device`, those of `CompactBatch.decode()`.

    The compact bytes travel and are decoded there; for the CPU NumPy decodes, whose indexing is several times faster.
    """
    columns, features, present = decoded_by_numpy(batch) if device.type == "cpu" else decoded_on(device, batch)
    targets = TeacherTargets(
        **columns,
        temperatures=manifest.token_rule.temperatures,
        vocabulary_size=manifest.vocabulary_size,
        num_samples=len(batch.token_ptr) - 1,
    )
    return CachedBatch(targets, features, present)


Decoded = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]
"""The fields of `TeacherTargets` that are tensors (None where the cache holds none), features and presence."""


def decoded_by_numpy(batch: CompactBatch) -> Decoded:
    """The batch as tensors over NumPy's memory."""
    decoded = batch.decode()
    optional = {name: getattr(decoded, name) for name in OPTIONAL}
    gaps = torch.from_numpy(decoded.gaps)
    columns = {
        "ids": torch.from_numpy(decoded.ids),
        "kept": gaps < torch.inf,
        "logits": -gaps,
        "gold_ids": torch.from_numpy(decoded.token_ids),
        "gold_logit": -torch.from_numpy(decoded.gold_gap),
        "tail_lse": torch.from_numpy(decoded.tail_lse),
        "sample_index": torch.from_numpy(decoded.sample_index),
        **{name: None if values is None else torch.from_numpy(values) for name, values in optional.items()},
    }
    features = {name: torch.from_numpy(values) for name, values in decoded.features.items()}
    features |= {focus_name(name): torch.from_numpy(places) for name, places in decoded.focus.items()}
    return columns, features, {name: torch.from_numpy(values) for name, values in decoded.present.items()}


def decoded_on(device: torch.device, batch: CompactBatch) -> Decoded:
    """The batch as tensors on the device, to which only the stored bytes travel; nothing in here waits for it."""
    arrays = {name: _tensor(values, device) for name, values in batch.arrays.items()}
    entry_counts = arrays["tok_n"].long()
    ranks = torch.arange(int(batch.arrays["tok_n"].max(initial=0)), device=device)
    kept = ranks < entry_counts[:, None]
    # Gathered by place: assigning by mask would make the host wait for the number of places.
    place = (entry_counts.cumsum(0) - entry_counts)[:, None] + ranks
    place.clamp_(max=max(len(batch.arrays["ids"]) - 1, 0))
    gold_ids, gold_gap = _ids(arrays, "token_ids"), arrays["gold_gap"].float()
    ids = _ids(arrays, "ids")[place].masked_fill(~kept, 0)
    gaps = arrays["gap"][place]
    if "gap_top" in arrays:
        gaps = torch.where(ids == gold_ids[:, None], gold_gap[:, None], _gaps(gaps, arrays["gap_top"]))
    token_counts = torch.from_numpy(np.diff(batch.token_ptr)).to(device)
    samples = torch.arange(len(token_counts), device=device)
    columns = {
        "ids": ids,
        "kept": kept,
        "logits": (-gaps).masked_fill(~kept, -torch.inf),
        "gold_ids": gold_ids,
        "gold_logit": -gold_gap,
        "tail_lse": arrays["tail_lse"].float(),
        "sample_index": torch.repeat_interleave(samples, token_counts, output_size=len(gold_ids)),
        **{name: arrays[name].float() if name in arrays else None for name in OPTIONAL},
    }
    names = batch.feature_names()
    features = {name: _feature(arrays, name) for name in names}
    features |= {focus_name(name): arrays[focus_name(name)].long() for name in batch.focus_names()}
    return columns, features, {name: arrays[f"present/{name}"].bool() for name in names}


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
        return torch.from_numpy(values.view(np.int16)).to(device).int() & 0xFFFF
    return torch.from_numpy(values).to(device)


def _ids(arrays: Mapping[str, Tensor], name: str) -> Tensor:
    high = arrays.get(f"{name}_high")
    return arrays[name].long() if high is None else arrays[name].long() | (high.long() << 16)


def _gaps(codes: Tensor, low: Tensor) -> Tensor:
    """The gaps [N, K] in nats of codes [N, K] and the low bytes [N, 3] of ranks 2 to 4: see `codec.encode_gaps`."""
    steps = _steps(codes.device)[codes.int()]
    wide = (codes[:, 1 : 1 + NUM_WIDE_RANKS].int() << 8) | low[:, : codes.shape[1] - 1]
    steps[:, :1] = 0
    steps[:, 1 : 1 + NUM_WIDE_RANKS] = torch.diff(wide, dim=1, prepend=steps[:, :1])
    return steps.cumsum(dim=1, dtype=torch.int32).float() / UNITS_PER_NAT


def _feature(arrays: Mapping[str, Tensor], name: str) -> Tensor:
    """A feature in float32; one in int8 is its codes times the scales of their groups."""
    stored = arrays[f"features/{name}"].float()
    if f"scales/{name}" not in arrays:
        return stored
    scales = arrays[f"scales/{name}"].float().repeat_interleave(GROUP_SIZE, dim=-1)
    return stored * scales[..., : stored.shape[-1]]


@functools.cache
def _steps(device: torch.device) -> Tensor:
    return torch.from_numpy(step_table().copy()).to(device)

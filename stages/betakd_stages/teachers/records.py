"""From the targets of a batch to one record per sample, by way of flat columns that can travel between processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from betakd_cache import TeacherRecord, TokenRule
from betakd_stages.encoding import EncodedSample
from betakd_stages.targets import TeacherTargets

OF_ENTRIES = ("ids", "gaps")
"""Columns with one number per kept entry; all others have one row per token."""


def targets_of(logits: Tensor, gold_ids: Tensor, rule: TokenRule, **samples: Any) -> tuple[TeacherTargets, Tensor]:
    """What a rule keeps of logits float32 `[N, V]`, and, bool `[N]`, where all of a row's are numbers: the targets of
    other rows mean nothing. `samples` as in `TeacherTargets.from_logits`."""
    finite = logits.sum(dim=1).isfinite()  # a tenth of the time of asking each
    if not finite.all():
        finite = logits.isfinite().all(dim=1)
        logits = logits.nan_to_num(0.0, 0.0, 0.0)
    targets = TeacherTargets.from_logits(
        logits,
        gold_ids,
        top_k=None if rule.exact and rule.top_k >= logits.shape[1] else rule.top_k,
        top_p=None if rule.top_p == 1 else rule.top_p,
        top_p_temperature=rule.top_p_temperature,
        temperatures=rule.temperatures,
        **samples,
    )
    return targets, finite


def flat_columns(targets: TeacherTargets) -> dict[str, Tensor]:
    """The arrays of a `TeacherRecord` by name, for all N tokens and E kept entries of the batch; what is None is left
    out."""
    columns = {
        "token_ids": targets.gold_ids,
        "entry_counts": targets.kept.sum(dim=1),
        "ids": targets.ids[targets.kept],
        "gaps": -targets.logits[targets.kept],
        "gold_gap": -targets.gold_logit,
        "tail_lse": targets.tail_lse,
        "tail_energy": targets.tail_energy,
        "logit_max": targets.logit_max,
        "logit_mean": targets.logit_mean,
        "logit_std": targets.logit_std,
    }
    return {name: values for name, values in columns.items() if values is not None}


def cut_records(
    columns: Mapping[str, Tensor],
    token_counts: Sequence[int],
    encoded: Sequence[EncodedSample],
    features: Sequence[Mapping[str, Tensor]],
    focus: Sequence[list[int]],
) -> list[TeacherRecord]:
    """One record per sample, cut out of flat columns in the order of the samples.

    `features` and `focus` are those of each sample; a name is absent, a list empty, where it has none.
    """
    return [
        TeacherRecord(
            sample_id=sample.sample_id,
            features={name: values.float().cpu().numpy() for name, values in features[index].items()},
            focus={"vision": np.array(focus[index])} if focus[index] else {},
            row={"image_sha256": sample.image_sha256},
            **arrays,
        )
        for index, (sample, arrays) in enumerate(zip(encoded, cut_columns(columns, token_counts), strict=True))
    ]


def cut_columns(columns: Mapping[str, Tensor], token_counts: Sequence[int]) -> list[dict[str, Any]]:
    """The arrays of each sample's `TeacherRecord`, cut out of flat columns in the order of the samples."""
    entry_counts = [int(counts.sum()) for counts in columns["entry_counts"].split(list(token_counts))]

    def per_sample(name: str) -> list[Any]:
        counts = entry_counts if name in OF_ENTRIES else list(token_counts)
        return [part.numpy() for part in columns[name].cpu().split(counts)]

    parts = {"tail_energy": [None] * len(token_counts), **{name: per_sample(name) for name in columns}}
    return [{name: arrays[index] for name, arrays in parts.items()} for index in range(len(token_counts))]


def token_counts(targets: TeacherTargets) -> list[int]:
    """How many supervised tokens each sample of the batch has, [B]."""
    counts: list[int] = torch.bincount(targets.sample_index, minlength=targets.num_samples).tolist()
    return counts

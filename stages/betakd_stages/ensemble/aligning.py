"""Targets of several teachers at the same tokens, and the mixture's cut to what a cache keeps of a token.

In float64, so that what is stored does not depend on which samples were mixed together.
Shapes: B samples, N tokens, T teachers, K entries, M temperatures.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from betakd_stages.distillation.cached_targets import labels_only
from betakd_stages.targets import TeacherTargets


def aligned(teachers: Sequence[TeacherTargets], held: Tensor, num_tokens: Tensor) -> list[TeacherTargets]:
    """The targets of B samples by every teacher, float64, from those of the samples that each holds, bool `[B, T]`.

    Where a teacher lacks a sample it stands in as certain of the label, for a mixture in which it has weight 0.
    `num_tokens` int64 `[B]` are those of each sample.
    """
    sample_index = torch.repeat_interleave(torch.arange(len(held)), num_tokens)
    of_teachers = held[sample_index]
    gold_ids = torch.zeros_like(sample_index)
    for teacher, at in zip(teachers, of_teachers.T, strict=True):
        gold_ids[at] = teacher.gold_ids
    labels = labels_only(gold_ids, sample_index, len(held), teachers[0].vocabulary_size)
    return [_at_all_tokens(teacher, at, labels) for teacher, at in zip(teachers, of_teachers.T, strict=True)]


def _at_all_tokens(teacher: TeacherTargets, at: Tensor, labels: TeacherTargets) -> TeacherTargets:
    """The teacher's targets where it has some, bool `[N]`, and the labels' elsewhere."""
    further = (0, max(teacher.ids.shape[1], 1) - 1)
    num_temperatures = len(teacher.temperatures)
    columns = {
        "ids": pad(labels.ids, further),
        "kept": pad(labels.kept, further),
        "logits": pad(labels.logits.double(), further, value=-torch.inf),
        "gold_logit": labels.gold_logit.double(),
        "tail_lse": labels.tail_lse.double().repeat(1, num_temperatures),
    }
    if teacher.tail_energy is not None:
        columns["tail_energy"] = torch.zeros_like(columns["tail_lse"])
    if at.any():
        for name, values in columns.items():
            values[at] = getattr(teacher, name).to(values.dtype)
    fields: dict[str, Any] = {"tail_energy": None, **columns, "temperatures": teacher.temperatures}
    return dataclasses.replace(labels, **fields)


def capped(targets: TeacherTargets, top_k: int) -> TeacherTargets:
    """The targets with at most `top_k` entries of a token, the likeliest and the gold one; the rest joins the tail."""
    if targets.ids.shape[1] <= top_k:
        return targets
    is_gold = targets.kept & (targets.ids == targets.gold_ids.unsqueeze(1))
    # A gold id beyond the cut takes the last place.
    most = top_k - (is_gold.int().argmax(dim=1) >= top_k).long()
    kept = targets.kept & ((torch.arange(targets.ids.shape[1]) < most.unsqueeze(1)) | is_gold)
    dropped = targets.kept & ~kept
    tail_lse, tail_energy = targets.tail_lse.clone(), targets.tail_energy
    tail_energy = None if tail_energy is None else tail_energy.clone()
    for column, temperature in enumerate(targets.temperatures):
        scaled = (targets.logits / temperature).masked_fill(~dropped, -torch.inf)
        before = targets.tail_lse[:, column]
        tail_lse[:, column] = torch.logaddexp(before, scaled.logsumexp(dim=1))
        if tail_energy is not None:
            # Where the tail stays empty there is nothing to be the mean of.
            total = tail_lse[:, column].nan_to_num(neginf=0.0)
            energies = (scaled - total.unsqueeze(1)).exp() * -targets.logits.masked_fill(~dropped, 0.0)
            tail_energy[:, column] = (before - total).exp() * tail_energy[:, column] + energies.sum(dim=1)
    order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)[:, :top_k]
    kept = kept.gather(1, order)
    return dataclasses.replace(
        targets,
        ids=targets.ids.gather(1, order).masked_fill(~kept, 0),
        kept=kept,
        logits=targets.logits.gather(1, order).masked_fill(~kept, -torch.inf),
        tail_lse=tail_lse,
        tail_energy=tail_energy,
    )


def kept_gold(targets: TeacherTargets) -> TeacherTargets:
    """The targets with the gold id's logit bit for bit that of its entry, as a record has it."""
    is_gold = targets.kept & (targets.ids == targets.gold_ids.unsqueeze(1))
    return dataclasses.replace(targets, gold_logit=targets.logits[is_gold])

"""A mixture's targets cut to what a cache keeps of a token. Shapes: N tokens, K entries, M temperatures."""

import dataclasses

import torch

from betakd_stages.targets import TeacherTargets


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

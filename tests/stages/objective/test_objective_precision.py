"""The objective computes in full precision, whatever it is called in."""

import torch
from tests.stages.objective.batches import Batch

from betakd_stages.objective_building import build_objective
from betakd_stages.statistics import Head
from betakd_stages.targets import TeacherTargets


def test_autocast_around_the_objective_changes_nothing(batch: Batch) -> None:
    objective = build_objective(energies=[("fkl", {})], weighting="task")
    targets = TeacherTargets.from_logits(batch.teacher_logits.float(), batch.gold_ids, top_k=8)
    hidden, head = batch.hidden.float(), Head(batch.weight.float())
    plain = objective(hidden, head, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = objective(hidden, head, targets)
    assert torch.equal(plain.objective, cast.objective)

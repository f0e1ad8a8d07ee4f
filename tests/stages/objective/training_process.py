"""One of several processes that train together: RANK NUM_PROCESSES STORE; prints what its objectives end up with."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from tests.stages.objective.batches import Batch, make_batch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from betakd_stages.objective_building import build_objective
from betakd_stages.statistics import Head

NUM_BATCHES = 2
"""Of each step, over all processes."""


class Student(nn.Module):
    """A head and its objective under one roof, as `Distiller` holds them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(make_batch(0).weight.clone())
        self.objective = build_objective(**settings)

    def forward(self, batches: list[Batch]) -> Tensor:
        """The mean objective of batches with one sample each."""
        outputs = [
            self.objective(batch.hidden, Head(self.weight), batch.targets((1.0, 2.0, 5.0), top_k=8))
            for batch in batches
        ]
        return torch.stack([output.total for output in outputs]).mean()


def final_state(rank: int, num_processes: int, **settings: Any) -> Mapping[str, Any]:
    """Parameters and buffers of the objective after four steps."""
    student = Student(**settings)
    wrapped = DistributedDataParallel(student) if num_processes > 1 else student
    for step in range(1, 5):
        batches = [make_batch(10 * step + number) for number in range(rank, NUM_BATCHES, num_processes)]
        if student.objective.remaining_batches:
            with torch.no_grad():
                student(batches)
        student.zero_grad()
        wrapped(batches).backward()
        # By hand: torch's optimizers import their compiler, which takes longer than all else here.
        with torch.no_grad():
            for parameter in student.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.05 * parameter.grad)
        student.objective.advance(step / 10)
    return {name: value.tolist() for name, value in student.objective.state_dict().items()}


def main(rank: int, num_processes: int, store: str) -> None:
    torch.set_num_threads(1)
    if num_processes > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_processes)
    manual = {"num_batches": NUM_BATCHES // num_processes}
    states = {
        "learned": final_state(rank, num_processes, energies=[("taid", {"rate": 0.5}), ("ctkd", {})]),
        "manual": final_state(
            rank, num_processes, energies=[("fkl", {})], weighting="manual", weighting_settings=manual
        ),
    }
    print(json.dumps(states))
    if num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

"""Several processes that train one student: what must be the same in all of them although each sees its own batches.

Every process has to call each function that hands something over, or the others wait. Where there is one process they
do nothing.
"""

import os
from typing import Any

import torch
from torch import Tensor


def join_processes() -> None:
    """Meet the other processes, if a launcher started several; each then has a device of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def are_several() -> bool:
    """Whether this process is one of several that have met."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def index_and_count() -> tuple[int, int]:
    """This process's index among all, and how many there are."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if are_several() else (0, 1)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in place; the values themselves where there is one process."""
    if are_several():
        torch.distributed.all_reduce(values)
    return values


def largest_of_processes(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers."""
    if not are_several():
        return number
    value = torch.tensor(number, device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)


def gather_from_processes(value: Any) -> list[Any]:
    """Every process's value, in their order; tensors in it have to be on the CPU."""
    if not are_several():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values

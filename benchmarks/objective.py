"""What the objective costs: time and peak memory of forward and backward from hidden states to gradients.

    python benchmarks/objective.py [--device cpu|cuda] [--quick] [--json FILE] [--threads N]

Each variant is timed next to the cross-entropy through the tiled operation, which is 1, in interleaved pairs: the
figure is the median of the pairs' ratios with its 95 % interval. Memory is the peak above the inputs and gradients
that exist before the step. "Dense" variants hold the student's logits of all tokens, and dense KD the teacher's too.
"""

import argparse
import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from betakd_stages.energies import make_energy
from betakd_stages.statistics import Head, Needs, student_statistics
from betakd_stages.targets import TeacherTargets

SHAPES = {
    "cpu": [(64, 1024, 32_000), (256, 512, 32_000), (64, 512, 151_936)],
    "cuda": [(256, 2048, 32_000), (8192, 2048, 32_000), (256, 896, 151_936), (4096, 2048, 151_936)],
}
QUICK_SHAPES = [(64, 256, 32_000)]
"""Tokens, width of the head, vocabulary."""
NUM_KEPT = 64
BASELINE = "CE, tiled"
M_MMAP_THRESHOLD = -3
"""glibc's number of that option of mallopt."""
ENERGIES = {
    "CE + fkl, tiled": ["fkl"],
    "CE + cosine_probs, tiled": ["cosine_probs"],
    "CE + every statistic, tiled": ["fkl", "cosine_probs", "mse_logits"],
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Hidden states `[N, D]` and a head `[V, D]` that get gradients, full teacher logits and what a cache keeps."""

    hidden: Tensor
    weight: Tensor
    teacher_logits: Tensor
    targets: TeacherTargets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="small shapes, few repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    shapes, repetitions = (QUICK_SHAPES, 5) if arguments.quick else (SHAPES[arguments.device], 7)
    rows = []
    for shape in shapes:
        found = measure(make_problem(*shape, dtype, arguments.device), shape, repetitions)
        show(found, "{:,} tokens, width {:,}, vocabulary {:,}, ".format(*shape) + str(dtype).removeprefix("torch."))
        rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def make_problem(num_tokens: int, width: int, vocabulary_size: int, dtype: torch.dtype, device: str) -> Problem:
    """A Zipf-like teacher and a random student."""
    generator = torch.Generator().manual_seed(0)
    zipf = -1.2 * torch.arange(1, vocabulary_size + 1).log()
    teacher = zipf[torch.argsort(torch.rand(num_tokens, vocabulary_size, generator=generator), dim=1)].to(device)
    gold_ids = teacher.argmax(dim=1)
    targets = TeacherTargets.from_logits(teacher, gold_ids, top_k=NUM_KEPT, temperatures=(1.0,))
    hidden = torch.randn(num_tokens, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary_size, width, generator=generator) / width**0.5).to(device, dtype).requires_grad_()
    return Problem(hidden, weight, teacher, targets)


def variants(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """The losses by name, the baseline first."""
    built: dict[str, Callable[[], Tensor]] = {BASELINE: lambda: tiled(problem, [], 0)}
    for name, energies in ENERGIES.items():
        built[name] = partial(tiled, problem, energies, 0)
    built["CE + fkl, tiles saved"] = lambda: tiled(problem, ["fkl"], 2**40)
    built["CE, dense"] = lambda: dense(problem, with_teacher=False)
    built["CE + fkl, dense"] = lambda: dense(problem, with_teacher=True)
    return built


def tiled(problem: Problem, names: list[str], save_bytes: int) -> Tensor:
    """Cross-entropy and energies through the operation."""
    energies = [make_energy(name) for name in names]
    needs = Needs()
    for energy in energies:
        needs = needs | energy.needs(problem.targets)
    statistics_ = student_statistics(
        problem.hidden, Head(problem.weight), problem.targets, needs, save_bytes=save_bytes
    )
    loss = statistics_.cross_entropy().mean()
    for energy in energies:
        loss = loss + energy(statistics_, problem.targets).mean()
    return loss


def dense(problem: Problem, with_teacher: bool) -> Tensor:
    """The same on full logits in float32."""
    logits = (problem.hidden @ problem.weight.T).float()
    log_q = torch.log_softmax(logits, dim=1)
    loss = torch.nn.functional.nll_loss(log_q, problem.targets.gold_ids)
    if with_teacher:
        loss = loss + torch.nn.functional.kl_div(
            log_q, torch.log_softmax(problem.teacher_logits, dim=1), reduction="batchmean", log_target=True
        )
    return loss


def measure(problem: Problem, shape: tuple[int, int, int], repetitions: int) -> list[dict[str, Any]]:
    """One row per variant."""
    rows: list[dict[str, Any]] = []
    losses = variants(problem)
    for name, loss in losses.items():
        ratios, times_ms = [], []
        for repetition in range(repetitions + 1):
            baseline_s, own_s = timed(problem, losses[BASELINE]), timed(problem, loss)
            if repetition:  # the first pair warms caches and allocators
                ratios.append(own_s / baseline_s)
                times_ms.append(1e3 * own_s)
        low, high = median_interval(ratios)
        rows.append(
            {
                "shape": shape,
                "dtype": str(problem.hidden.dtype).removeprefix("torch."),
                "variant": name,
                "ms": round(statistics.median(times_ms), 2),
                "ratio": round(statistics.median(ratios), 3),
                "low": round(low, 3),
                "high": round(high, 3),
            }
        )
    # After all timing: what makes memory measurable on the CPU makes allocation slower.
    for row in rows:
        row["peak_mib"] = round(peak_memory_mib(problem, losses[row["variant"]]))
    return rows


def step(problem: Problem, loss: Callable[[], Tensor]) -> None:
    problem.hidden.grad = problem.weight.grad = None
    loss().backward()


def timed(problem: Problem, loss: Callable[[], Tensor]) -> float:
    """Seconds of one step."""
    synchronise(problem)
    start_s = time.perf_counter()
    step(problem, loss)
    synchronise(problem)
    return time.perf_counter() - start_s


def synchronise(problem: Problem) -> None:
    if problem.hidden.is_cuda:
        torch.cuda.synchronize()


def peak_memory_mib(problem: Problem, loss: Callable[[], Tensor]) -> float:
    """Peak of one step above what is held before it; on the CPU, of this process's resident memory (Linux)."""
    step(problem, loss)
    problem.hidden.grad = problem.weight.grad = None
    if problem.hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(problem, loss)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Blocks of a MiB and more go back to the system when freed, so that they count only while they live.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    resident_before_mib = resident_mib("VmRSS")
    step(problem, loss)
    return resident_mib("VmHWM") - resident_before_mib


def resident_mib(field: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def median_interval(values: list[float]) -> tuple[float, float]:
    """The order statistics that hold the median with at least 95 % confidence, or the extremes of too few values."""
    ordered, num_values = sorted(values), len(values)
    outside = 0.0
    rank = 0
    while 2 * (outside + math.comb(num_values, rank) / 2**num_values) <= 0.05:
        outside += math.comb(num_values, rank) / 2**num_values
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[num_values - 1 - rank]


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for name in ("forward and backward", "ms", "ratio (95 % interval)", "peak MiB"):
        table.add_column(name, justify="left" if name.startswith("forward") else "right")
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        table.add_row(row["variant"], f"{row['ms']:,.1f}", ratio, f"{row['peak_mib']:,}")
    Console().print(table)


if __name__ == "__main__":
    main()

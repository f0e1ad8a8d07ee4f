"""What the objective costs: time and peak memory of forward and backward from hidden states to gradients.

    python benchmarks/objective.py [--device cpu|cuda] [--memory] [--quick] [--variant NAME]... [--json FILE]

Each variant is timed next to the cross-entropy through the tiled operation, which is 1, in interleaved pairs: the
figure is the median of the pairs' ratios with its 95 % interval. Memory is the peak beyond the head, its gradient, the
hidden states and the targets. "Dense" variants hold the student's logits of all tokens, and dense KD the teacher's too,
which are an input and not counted. `--memory` measures memory alone, of many tokens on a head so narrow that dense KD
fits into 24 GiB.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmark_measures import median_interval, resident_growth_mib
from betakd_stages.energies import make_energy
from betakd_stages.statistics import SAVE_BYTES, Head, Needs, student_statistics
from betakd_stages.targets import TeacherTargets

SHAPES = {
    "cpu": [(256, 2048, 32_000), (64, 2048, 151_936)],
    "cuda": [(256, 2048, 32_000), (8192, 2048, 32_000), (256, 2048, 151_936), (4096, 2048, 151_936)],
}
QUICK_SHAPES = [(64, 256, 32_000)]
MEMORY_SHAPES = [(4096, 128, 151_936)]
QUICK_MEMORY_SHAPES = [(512, 8, 131_072)]
"""Tokens, width of the head, vocabulary."""
NUM_KEPT = 64
NUM_PEAKS = 3
TEMPERATURES = (1.0, 5.0)
"""What ctkd can reach."""
BASELINE = "CE"
ENERGIES = ["fkl", "cosine_probs", "alpha_beta", "mse_logits", "ctkd"]
"""One for each set of statistics: temperature 1, and its half, and an odd one, moments, a learned temperature."""


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
    parser.add_argument("--memory", action="store_true", help="memory alone, at 4,096 tokens; needs 20 GiB on the CPU")
    parser.add_argument("--quick", action="store_true", help="a small shape, and five pairs at most")
    parser.add_argument("--pairs", type=int, default=20, help="how many pairs of steps are timed for each variant")
    parser.add_argument(
        "--variant", action="append", metavar="NAME", help="only this one beside CE; repeat for several"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; run it where there is one, or with --device cpu")
    torch.set_num_threads(arguments.threads)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    if arguments.memory:
        shapes, num_pairs = QUICK_MEMORY_SHAPES if arguments.quick else MEMORY_SHAPES, 0
    elif arguments.quick:
        shapes, num_pairs = QUICK_SHAPES, min(5, arguments.pairs)
    else:
        shapes, num_pairs = SHAPES[arguments.device], arguments.pairs
    rows = []
    for shape in shapes:
        problem = make_problem(*shape, dtype, arguments.device)
        found = measure(problem, shape, arguments.variant or variants(problem), num_pairs)
        show(found, "{:,} tokens, width {:,}, vocabulary {:,}, ".format(*shape) + str(dtype).removeprefix("torch."))
        rows += found
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def make_problem(num_tokens: int, width: int, vocabulary_size: int, dtype: torch.dtype, device: str) -> Problem:
    """A Zipf-like teacher and a random student."""
    generator = torch.Generator().manual_seed(0)
    zipf = -1.2 * torch.arange(1, vocabulary_size + 1).log()
    teacher = torch.empty(num_tokens, vocabulary_size, device=device)
    for row in teacher:
        row.copy_(zipf[torch.randperm(vocabulary_size, generator=generator)])
    targets = TeacherTargets.from_logits(teacher, teacher.argmax(dim=1), top_k=NUM_KEPT, temperatures=TEMPERATURES)
    hidden = torch.randn(num_tokens, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary_size, width, generator=generator) / width**0.5).to(device, dtype).requires_grad_()
    return Problem(hidden, weight, teacher, targets)


def variants(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """The losses by name, the baseline first."""
    built: dict[str, Callable[[], Tensor]] = {BASELINE: partial(tiled, problem, [])}
    for name in ENERGIES:
        built[f"CE + {name}"] = partial(tiled, problem, [name])
    built["CE + all of these"] = partial(tiled, problem, ENERGIES)
    built["CE + fkl, no tile saved"] = partial(tiled, problem, ["fkl"], 0)
    built["CE, dense"] = partial(dense, problem, with_teacher=False)
    built["CE + fkl, dense"] = partial(dense, problem, with_teacher=True)
    return built


def tiled(problem: Problem, names: list[str], save_bytes: int = SAVE_BYTES) -> Tensor:
    """Cross-entropy and energies through the operation."""
    energies = [make_energy(name).to(problem.hidden.device) for name in names]
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


def measure(
    problem: Problem, shape: tuple[int, int, int], names: Iterable[str], num_pairs: int
) -> list[dict[str, Any]]:
    """One row per named variant after the baseline's; without figures of time where there are no pairs."""
    losses = variants(problem)
    dtype = str(problem.hidden.dtype).removeprefix("torch.")
    rows: list[dict[str, Any]] = [
        {"shape": shape, "dtype": dtype, "variant": name} for name in dict.fromkeys([BASELINE, *names])
    ]
    if num_pairs:
        for row in rows:
            row.update(timing(problem, losses[BASELINE], losses[row["variant"]], num_pairs))
    # After all timing: what makes memory measurable on the CPU makes allocation slower.
    for row in rows:
        row["peak_mib"] = round(peak_memory_mib(problem, losses[row["variant"]]), 1)
    return rows


def timing(
    problem: Problem, baseline: Callable[[], Tensor], loss: Callable[[], Tensor], num_pairs: int
) -> dict[str, float]:
    """Milliseconds, and the ratio to the baseline with its 95 % interval; which of a pair comes first alternates."""
    ratios, times_ms = [], []
    for pair in range(num_pairs + 1):
        first, second = (baseline, loss) if pair % 2 else (loss, baseline)
        first_s, second_s = timed(problem, first), timed(problem, second)
        baseline_s, own_s = (first_s, second_s) if pair % 2 else (second_s, first_s)
        if pair:  # the first pair warms caches and allocators
            ratios.append(own_s / baseline_s)
            times_ms.append(1e3 * own_s)
    low, high = median_interval(ratios)
    return {
        "ms": round(statistics.median(times_ms), 2),
        "ratio": round(statistics.median(ratios), 3),
        "low": round(low, 3),
        "high": round(high, 3),
    }


def step(problem: Problem, loss: Callable[[], Tensor]) -> None:
    problem.hidden.grad = problem.weight.grad = None
    loss().backward()


def timed(problem: Problem, loss: Callable[[], Tensor]) -> float:
    """Seconds of one step; on the CPU those that this process computed, so that others' load does not count."""
    clock = time.perf_counter if problem.hidden.is_cuda else time.process_time
    synchronise(problem)
    start_s = clock()
    step(problem, loss)
    synchronise(problem)
    return clock() - start_s


def synchronise(problem: Problem) -> None:
    if problem.hidden.is_cuda:
        torch.cuda.synchronize()


def peak_memory_mib(problem: Problem, loss: Callable[[], Tensor]) -> float:
    """Peak of one step above the inputs and the head's gradient; on the CPU, of this process's resident memory (Linux).

    The head's gradient is counted as if it were held throughout.
    """
    head_gradient_mib = problem.weight.numel() * problem.weight.itemsize / 2**20
    step(problem, loss)
    problem.hidden.grad = problem.weight.grad = None
    if problem.hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(problem, loss)
        return (torch.cuda.max_memory_allocated() - before) / 2**20 - head_gradient_mib
    # The least of a few: threads and heaps that grow meanwhile can only add to what the step takes.
    return min(resident_growth_mib(partial(step, problem, loss)) for _ in range(NUM_PEAKS)) - head_gradient_mib


def show(rows: list[dict[str, Any]], title: str) -> None:
    timed_too = "ratio" in rows[0]
    table = Table(title=title)
    for name in ("forward and backward", *(["ms", "ratio (95 % interval)"] if timed_too else []), "peak MiB", "to CE"):
        table.add_column(name, justify="left" if name.startswith("forward") else "right")
    for row in rows:
        cells = [row["variant"]]
        if timed_too:
            cells += [f"{row['ms']:,.1f}", f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"]
        table.add_row(*cells, f"{row['peak_mib']:,.1f}", f"{row['peak_mib'] / rows[0]['peak_mib']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

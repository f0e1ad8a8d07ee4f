"""Which share of stage two's time goes into waiting for data, and into reading and decoding the cache.

    python benchmarks/data_loading.py [--device cpu|cuda] [--steps N] [--workers N]... [--quick] [--json FILE]

The real training loop over JPEG photographs of 640 x 480 that are read anew in every step (nothing is kept in memory),
with as many data workers as asked for, one run after the other. Waiting is the time in which the training loop stands
still for its next batch: decoding and processing images, tokenising, collating, reading the cache. Reading and decoding
the cache are timed inside that and inside the forward pass; what workers read costs the training nothing and is shown
as 0.
On the CPU the student is scaled, in float32; with --device cuda it has 1.7B parameters, bfloat16.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmark_teacher_world import SHAPES, save_samples, save_teacher
from betakd_cache import TeacherCache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.distillation import dataset, distiller
from betakd_stages.distillation.run import distill
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

PARTS = {
    "waiting": (DistillationTrainer, "get_batch_samples"),
    "reading the cache": (TeacherCache, "batch"),
    "decoding it": (distiller, "decode_batch"),
}
"""What is timed, and where it happens."""
WARM_STEPS = 2


def main() -> None:
    arguments = parsed_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        rows = measure(arguments, Path(name))
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def parsed_arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, action="append", help="data workers (default: 0, then 1)")
    parser.add_argument("--quick", action="store_true", help="a small student and four steps: does everything run?")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; run it where there is one, or with --device cpu")
    if arguments.quick:
        arguments.steps = 4
    return arguments


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row per number of workers."""
    kind = "cuda" if arguments.device == "cuda" else "quick" if arguments.quick else "cpu"
    data = save_samples(folder, (arguments.steps + WARM_STEPS) * arguments.batch_size)
    for role in ("student", "teacher"):  # the teacher is the student's twin: nothing here depends on what it says
        model, _ = save_teacher(folder / role, SHAPES[f"{kind} student"], arguments.device)
        model.save_pretrained(folder / role)
    cache_teacher(
        CacheTeacherSettings(teacher=str(folder / "teacher"), data=data), folder / "cache", progress=SilentProgress()
    )
    rows = []
    for workers in arguments.workers or (0, 1):
        training = {
            "steps": arguments.steps + WARM_STEPS,
            "batch_size": arguments.batch_size,
            "data_workers": workers,
            "precision": "bf16" if arguments.device == "cuda" else "fp32",
        }
        settings = DistillSettings.model_validate(
            {
                "student": str(folder / "student"),
                "cache": str(folder / "cache"),
                "data": data,
                "objective": {"energies": ["fkl"], "features": ["vision", "prompt"]},
                "weighting": {"name": "instance"},
                "training": training,
            }
        )
        seconds = timed_run(settings, folder / f"run-{workers}")
        shares = {name: round(seconds[name] / seconds["step"], 4) for name in PARTS}
        rows.append({"workers": workers, "s_per_step": round(seconds["step"] / arguments.steps, 4), **shares})
    return rows


def timed_run(settings: DistillSettings, out: Path) -> dict[str, float]:
    """Seconds of all steps but the first few, and of each part of them."""
    seconds = dict.fromkeys([*PARTS, "step"], 0.0)
    progress = StepClock(seconds)
    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            stack.enter_context(timing(owner, name, part, seconds))
        stack.enter_context(mock.patch.object(dataset, "MEMORY_BYTES", 0))
        distill(settings, out, progress=progress)
    return seconds


class StepClock(SilentProgress):
    """Starts counting after the first few steps, and stops after the last."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._num_steps = 0
        self._started_s = 0.0

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self._num_steps += num_units
        if self._num_steps == WARM_STEPS and num_units:
            self._seconds.update(dict.fromkeys(self._seconds, 0.0))
            self._started_s = time.perf_counter()
        self._seconds["step"] = time.perf_counter() - self._started_s


@contextmanager
def timing(owner: Any, name: str, part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time of every call of `owner.name` to `seconds[part]`."""
    original: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        start_s = time.perf_counter()
        try:
            return original(*arguments, **named)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[part] += time.perf_counter() - start_s

    with mock.patch.object(owner, name, timed):
        yield


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="shares of the time of a step")
    for name in ("workers", "s per step", *PARTS):
        table.add_column(name, justify="right")
    for row in rows:
        shares = (f"{100 * row[name]:.2f} %" for name in PARTS)
        table.add_row(str(row["workers"]), f"{row['s_per_step']:.3f}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()

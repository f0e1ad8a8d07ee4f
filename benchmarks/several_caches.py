"""What a second cache costs a step of stage two, in time and memory.

    python benchmarks/several_caches.py [--device cpu|cuda] [--pairs N] [--quick] [--json FILE]

One student learns from one teacher's cache, from two mixed while reading, from two mixed before (`cache merge
--mixture`), and from two teachers with channels of their own; cross-entropy, forward KL and task weights. A step is
everything from encoded samples in memory to zeroed gradients, one of every way per round, in an order that turns; a
figure is the median over rounds of the ratio to one cache, with its 95 % interval. Times on the CPU are this process's
own. Memory is what the way holds and the peak of a step beyond it. Models are those of distill_step.py, with answers of
twenty words.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmark_students import Setting, our_setting
from benchmark_teacher_world import SHAPES, save_samples
from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.distillation.dataset import EncodedSamples
from betakd_stages.ensemble.merging import merge_mixture
from betakd_stages.models.loading import LoadedModel
from betakd_stages.models.parts import freeze
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings, MixtureSettings
from distill_step import ANSWER_WORDS, NUM_SAMPLES, batches_of, described, peak_mib, ratio, saved, timed_rounds

ONE = "one cache"
BATCH_SIZE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pairs", type=int, default=20, help="rounds, each with one step of every way")
    parser.add_argument("--quick", action="store_true", help="smaller models and three rounds: does everything run?")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; run it where there is one, or with --device cpu")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The table's rows, printed."""
    kind = "cuda" if arguments.device == "cuda" else "quick" if arguments.quick else "cpu"
    data = save_samples(folder, NUM_SAMPLES, ANSWER_WORDS["long"])
    precision: Literal["fp32", "bf16"] = "bf16" if arguments.device == "cuda" else "fp32"
    student = saved(folder / "student", SHAPES[f"{kind} student"], arguments.device)
    teachers = [saved(folder / "teacher", SHAPES[f"{kind} teacher"], arguments.device), student]
    for number, teacher in enumerate(teachers):
        chosen = CacheTeacherSettings(teacher=str(teacher.folder), data=data, precision=precision)
        cache_teacher(chosen, folder / f"cache{number}", progress=SilentProgress())
    del teachers
    paths = [str(folder / f"cache{number}") for number in (0, 1)]
    merge_mixture(MixtureSettings(caches=tuple(paths), data=data), str(folder / "mixed"), progress=SilentProgress())
    freeze(student.model, train_vision_tower=False, train_projector=True)
    student.model.train()
    dataset = EncodedSamples(load_samples(data), student.encoder, None)
    ways = ways_of(student, data, paths, folder, precision, dataset)
    batches = batches_of(dataset, BATCH_SIZE)
    for way in ways.values():
        way.step(next(batches))  # warms everything
    rounds = 3 if arguments.quick else arguments.pairs
    seconds = timed_rounds(ways, batches, rounds)
    items = next(batches)
    memory = {name: peak_mib(way, items, arguments.device) for name, way in ways.items()}
    rows = [
        {"way": name, **ratio(seconds[name], seconds[ONE]), "memory_ratio": round(memory[name] / memory[ONE], 3)}
        for name in ways
    ]
    show(rows, f"student {described(student)}, batch {BATCH_SIZE}, {arguments.device}, {rounds} rounds")
    return rows


def ways_of(
    student: LoadedModel, data: str, paths: list[str], folder: Path, precision: str, dataset: EncodedSamples
) -> dict[str, Setting]:
    """By name; all of them train the same student."""
    training = {"batch_size": BATCH_SIZE, "precision": precision, "optimizer": "adamw_torch"}
    common = {"student": str(student.folder), "data": data, "objective": {"energies": ["fkl"]}, "training": training}
    asked: dict[str, tuple[list[str], dict[str, Any]]] = {
        ONE: (paths[:1], {}),
        "two, mixed while reading": (paths, {"weighting": "confidence"}),
        "two, mixed before": ([str(folder / "mixed")], {}),
        "two, a channel each": (paths, {"combine": "channels"}),
        "two, mixture of priors": (paths, {"combine": "prior"}),
    }
    setting = partial(our_setting, student=student, folder=folder, dataset=dataset)
    return {
        name: setting(
            DistillSettings.model_validate({**common, "cache": caches, "ensemble": ensemble}),
            [open_cache(path) for path in caches],
        )
        for name, (caches, ensemble) in asked.items()
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for name in ("", "time (95 % interval)", "memory"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        interval = f"{row['step_time_ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        table.add_row(row["way"], interval, f"{row['memory_ratio']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()

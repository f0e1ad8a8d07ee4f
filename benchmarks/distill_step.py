"""What a step of stage two costs beside plain fine-tuning and beside distillation with the teacher in memory.

    python benchmarks/distill_step.py [--device cpu|cuda] [--answers short|long] [--adapter lora] [--pairs N]
                                       [--quick] [--json FILE]

(a) transformers' Trainer, cross-entropy on the model's full logits; (b) ours, cross-entropy; (c) ours, from a cache:
cross-entropy, forward KL, both features and weights per instance; (d) cross-entropy and forward KL on full logits of a
teacher that is resident and runs in every step. A step is everything from encoded samples in memory to zeroed
gradients: collating (reading the cache in (c)), forward, backward, clipping, the optimizer. All four train one student,
one step each per round, in an order that turns; a figure is the median over rounds of the ratio to the step beside it,
with its 95 % interval. Times on the CPU are this process's own, so that others' load does not count.
Memory is what the setting holds (weights, the optimizer's state) and the peak of a step beyond it.
On the CPU models are scaled, in float32; with --device cuda a student of 1.7B and a teacher of 7B parameters, bfloat16.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmark_measures import median_interval, resident_growth_mib
from benchmark_students import Setting, settings_of
from benchmark_teacher_world import SHAPES, Shape, save_samples, save_teacher
from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.distillation.batches import RunBatches, StepShape
from betakd_stages.distillation.dataset import EncodedSamples
from betakd_stages.encoding import EncodedSample
from betakd_stages.models.loading import LoadedModel
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings

ANSWER_WORDS = {"short": 0.0, "long": 3.0}
"""The logarithm of the median number of words: one as in multiple choice, or twenty."""
NUM_SAMPLES = 32
COMPARED = {"b": ("a",), "c": ("b", "a", "d")}
"""Each setting, and those its time and memory are divided by."""
NAMES = {
    "a": "Trainer, CE on full logits",
    "b": "ours, CE",
    "c": "ours, CE + fkl + features + instance weights, cached",
    "d": "CE + fkl on full logits, teacher resident",
}


def main() -> None:
    arguments = parsed_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def parsed_arguments() -> argparse.Namespace:
    """What was asked for, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--answers", choices=tuple(ANSWER_WORDS), default="long")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--adapter", choices=("none", "lora"), default="none", help="lora: adapters train, in all four")
    parser.add_argument("--pairs", type=int, default=20, help="rounds, each with one step of every setting")
    parser.add_argument("--quick", action="store_true", help="smaller models and three rounds: does everything run?")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; run it where there is one, or with --device cpu")
    if arguments.quick:
        arguments.pairs = 3
    return arguments


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The table's rows, printed."""
    kind = "cuda" if arguments.device == "cuda" else "quick" if arguments.quick else "cpu"
    student_shape, teacher_shape = SHAPES[f"{kind} student"], SHAPES[f"{kind} teacher"]
    data = save_samples(folder, NUM_SAMPLES, ANSWER_WORDS[arguments.answers])
    precision: Literal["fp32", "bf16"] = "bf16" if arguments.device == "cuda" else "fp32"
    teacher = saved(folder / "teacher", teacher_shape, arguments.device)
    student = saved(folder / "student", student_shape, arguments.device)
    chosen = CacheTeacherSettings(teacher=str(folder / "teacher"), data=data, precision=precision)
    cache_teacher(chosen, folder / "cache", progress=SilentProgress())
    dataset = EncodedSamples(load_samples(data), student.encoder, None)
    settings = settings_of(arguments, data, student, teacher, open_cache(folder / "cache"), folder, dataset)
    batches = batches_of(dataset, arguments.batch_size)
    losses = {name: float(setting.step(next(batches))) for name, setting in settings.items()}  # warms everything
    assert all(map(torch.isfinite, map(torch.tensor, losses.values()))), losses
    seconds = timed_rounds(settings, batches, arguments.pairs)
    items = next(batches)
    memory = {name: peak_mib(setting, items, arguments.device) for name, setting in settings.items()}
    shapes = f"student {described(student)}, teacher {described(teacher)}, batch {arguments.batch_size}"
    shapes += f", {arguments.answers} answers, {arguments.device}" + (", LoRA" if arguments.adapter == "lora" else "")
    rows = [
        {
            "setting": NAMES[name],
            "against": NAMES[other],
            **ratio(seconds[name], seconds[other]),
            "memory_ratio": round(memory[name] / memory[other], 3),
            "shapes": shapes,
        }
        for name, others in COMPARED.items()
        for other in others
    ]
    show(rows, shapes, {name: (statistics.median(seconds[name]), memory[name]) for name in settings})
    return rows


def saved(folder: Path, shape: Shape, device: str) -> LoadedModel:
    """A model of random weights, on the device and in its folder."""
    model, encoder = save_teacher(folder, shape, device)
    model.save_pretrained(folder)
    return LoadedModel(model, encoder, folder)


def described(loaded: LoadedModel) -> str:
    return f"{sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6:,.0f} M"


def batches_of(dataset: EncodedSamples, batch_size: int) -> Iterator[list[tuple[int, EncodedSample]]]:
    """Batches without end, the same for every call."""
    shape = StepShape(batch_size, 1, 1)
    for indices in RunBatches(len(dataset), shape, num_steps=10**6, process_index=0, seed=0):
        yield [dataset[index] for index in indices]


def timed_rounds(
    settings: dict[str, Setting], batches: Iterator[list[tuple[int, EncodedSample]]], num_rounds: int
) -> dict[str, list[float]]:
    """Seconds of each setting's step in each round; all settings of a round get the same samples."""
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    names = list(settings)
    for number in range(num_rounds):
        items = next(batches)
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            seconds[name].append(timed(partial(settings[name].step, items)))
    return seconds


def timed(step: Callable[[], Any]) -> float:
    clock = time.process_time
    if torch.cuda.is_available():
        clock = time.perf_counter
        torch.cuda.synchronize()
    start_s = clock()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start_s


def peak_mib(setting: Setting, items: list[tuple[int, EncodedSample]], device: str) -> float:
    """What the setting holds and the peak of one more step beyond that."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        setting.step(items)
        return setting.held_mib() + (torch.cuda.max_memory_allocated() - before) / 2**20
    return setting.held_mib() + resident_growth_mib(lambda: setting.step(items))


def ratio(own_s: list[float], other_s: list[float]) -> dict[str, float]:
    """The median of the rounds' ratios, and its 95 % interval."""
    ratios = [own / other for own, other in zip(own_s, other_s, strict=True)]
    low, high = median_interval(ratios)
    return {
        "step_time_ratio": round(statistics.median(ratios), 3),
        "low": round(low, 3),
        "high": round(high, 3),
    }


def show(rows: list[dict[str, Any]], title: str, absolute: dict[str, tuple[float, float]]) -> None:
    table = Table(title=title)
    for name in ("setting", "s per step", "MiB"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for name, (seconds, mib) in absolute.items():
        table.add_row(f"({name}) {NAMES[name]}", f"{seconds:.3f}", f"{mib:,.0f}")
    ratios = Table()
    for name in ("ratio", "time (95 % interval)", "memory"):
        ratios.add_column(name, justify="left" if name == "ratio" else "right")
    letters = {text: letter for letter, text in NAMES.items()}
    for row in rows:
        interval = f"{row['step_time_ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        name = f"({letters[row['setting']]}) / ({letters[row['against']]})"
        ratios.add_row(name, interval, f"{row['memory_ratio']:.3f}")
    console = Console()
    console.print(table)
    console.print(ratios)


if __name__ == "__main__":
    main()

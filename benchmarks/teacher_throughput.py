"""How fast stage one runs a teacher, which part of it takes the time, and how much of the processor is used.

    python benchmarks/teacher_throughput.py [--device cuda] [--samples N] [--batch-size N] [--json FILE]

On the CPU (default) a small teacher in float32; with --device cuda one in the shape of LLaVA 1.5 7B (CLIP L/14 at 336
pixels, Vicuna 7B), in bfloat16. Weights are random, which costs what trained ones do; nothing is downloaded. The
samples are JPEG photographs of 640 x 480 with questions and answers of very different lengths, every fifth without one.
--wait-ms puts a wait in place of each forward pass: what threads bring beside a device that leaves the CPU alone.

Runs: each part of the work alone, one after the other; and whole runs, with and without buckets and threads. Backends:
transformers beside vLLM, where it is installed, and each against vLLM's plain prefill; on the CPU with a wider teacher.
The share of the peak counts 2 operations per parameter and token of a sample (padding is waste and not counted): tower
and projector by patches, language model by tokens, head by answer tokens.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from benchmark_backends import HAS_VLLM, RATIOS, backend_rows, compare_backends
from benchmark_teacher_world import LARGE, SMALL, WIDE, Shape, save_samples, save_teacher
from benchmark_work import Work, device_peak, measure_work
from betakd_cache import CacheWriter
from betakd_stages.caching.batching import length_buckets
from betakd_stages.caching.run import open_writer, preparing_encoders, score_all
from betakd_stages.data import load_samples
from betakd_stages.data.sample import LoadedImage, Sample, SampleSet
from betakd_stages.encoding import EncodedSample
from betakd_stages.models.loading import LoadedModel
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, VllmSettings
from betakd_stages.teachers.hf import HuggingFaceTeacher
from betakd_stages.teachers.opening import open_hf_teacher

SERIAL = {False: "one after the other, samples as they come", True: "one after the other, buckets"}
RUNS = {
    "samples as they come, 1 thread": {"bucket_window": 1, "preparing_threads": 1},
    "buckets, 1 thread": {"bucket_window": 8, "preparing_threads": 1},
    "buckets, 2 threads (default)": {"bucket_window": 8, "preparing_threads": 2},
    "buckets, 4 threads": {"bucket_window": 8, "preparing_threads": 4},
}


class Clock:
    """Seconds by part, the device's work included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is enclosed, to the end of what it starts on the device."""
        start_s = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s


def main() -> None:
    arguments = parsed_arguments()
    peak_name, peak = device_peak(arguments.device, arguments.peak_tflops)
    written: dict[str, Any] = {"peak": peak_name}
    for name, compare in COMPARISONS.items():
        if arguments.only in (name, None):
            with tempfile.TemporaryDirectory() as folder:
                written[name] = compare(arguments, Path(folder), peak_name, peak)
    if arguments.json:
        arguments.json.write_text(json.dumps(written, indent=2) + "\n")


def parsed_arguments() -> argparse.Namespace:
    """What was asked for, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=tuple(COMPARISONS), help="one of the two comparisons")
    parser.add_argument(
        "--samples", type=int, help="how many (default: 256 for runs and 64 for backends; 2048 on a GPU)"
    )
    parser.add_argument("--batch-size", type=int, help="samples per forward pass (default: 16, 32 on a GPU)")
    parser.add_argument("--repetitions", type=int, help="runs: the fastest of 3 counts; backends: the median of 5")
    parser.add_argument("--quick", action="store_true", help="16 samples once: does everything run?")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where its name is not known")
    parser.add_argument("--wait-ms", type=float, help="runs: wait so long per batch instead of running the model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; leave --device out")
    if arguments.quick:
        arguments.samples, arguments.repetitions = arguments.samples or 16, arguments.repetitions or 1
    return arguments


def compare_runs(arguments: argparse.Namespace, folder: Path, peak_name: str, peak: float) -> list[dict[str, Any]]:
    """The rows of stage one's parts and of whole runs, printed."""
    on_gpu = arguments.device == "cuda"
    loaded = saved_teacher(folder / "teacher", LARGE if on_gpu else SMALL, arguments.device)
    if arguments.wait_ms:
        wait_instead(loaded.model, arguments.wait_ms / 1000)
        peak_name, peak = "nothing: the model waits", math.inf
    settings = settings_of(arguments, loaded, folder, 2048 if on_gpu else 256)
    samples = load_samples(settings.data)
    work = measure_work(loaded, samples)
    timed: list[list[dict[str, Any]]] = []
    for _ in range(arguments.repetitions or 3):
        timed.append([])
        for bucketed, title in SERIAL.items():
            clock = one_after_the_other(settings, loaded, samples, bucketed)
            timed[-1].append(row(title, sum(clock.seconds.values()), work, peak) | {"parts": clock.seconds})
        for title, changes in RUNS.items():
            seconds = whole_run(settings.model_copy(update=changes), loaded, samples)
            timed[-1].append(row(title, seconds, work, peak))
    rows = [min(same, key=lambda row: row["seconds"]) for same in zip(*timed, strict=True)]
    show_runs(rows, peak_name)
    return rows


def compare_with_vllm(arguments: argparse.Namespace, folder: Path, peak_name: str, peak: float) -> list[dict[str, Any]]:
    """The rows of the backends that are installed, printed."""
    on_gpu = arguments.device == "cuda"
    torch.cuda.empty_cache()  # the engines ask how much is free
    loaded = saved_teacher(folder / "teacher", LARGE if on_gpu else WIDE, arguments.device)
    loaded.model.save_pretrained(loaded.folder)
    settings = settings_of(arguments, loaded, folder, 2048 if on_gpu else 64)
    samples = load_samples(settings.data)
    encoded = [loaded.encoder.encode(sample) for sample in samples]
    taken = compare_backends(settings, loaded, encoded, arguments.repetitions or 5)
    rows = backend_rows(taken, measure_work(loaded, samples), peak)
    show_backends(rows, peak_name)
    return rows


COMPARISONS = {"runs": compare_runs, "backends": compare_with_vllm}


def saved_teacher(folder: Path, shape: Shape, device: str) -> LoadedModel:
    """A new teacher of this shape."""
    return LoadedModel(*save_teacher(folder, shape, device), folder)


def settings_of(
    arguments: argparse.Namespace, loaded: LoadedModel, folder: Path, num_samples: int
) -> CacheTeacherSettings:
    """Stage one's settings with this teacher, and so many new samples unless another number is asked for."""
    on_gpu = arguments.device == "cuda"
    return CacheTeacherSettings(
        teacher=str(loaded.folder),
        data=save_samples(folder / "data", arguments.samples or num_samples),
        batch_size=arguments.batch_size or (32 if on_gpu else 16),
        precision="bf16" if on_gpu else "fp32",
        vllm=VllmSettings(gpu_memory_utilization=0.3),  # two engines beside the teacher of transformers
    )


def wait_instead(model: PreTrainedModel, seconds: float) -> None:
    """Let the model's body wait and hand out zeros as hidden states; the head is applied to them as ever."""

    def wait(input_ids: torch.Tensor, **inputs: Any) -> BaseModelOutput:
        time.sleep(seconds)
        states = torch.zeros(*input_ids.shape, model.config.get_text_config().hidden_size)
        for hook in model.get_decoder()._forward_pre_hooks.values():  # what hands out the projector's output
            hook(model.get_decoder(), (), {"inputs_embeds": states})
        return BaseModelOutput(last_hidden_state=states)

    model.base_model.forward = wait


@dataclass(frozen=True, slots=True)
class InMemory:
    """An image that has been read."""

    image: LoadedImage

    def load(self) -> LoadedImage:
        return self.image

    def sha256(self) -> str:
        return self.image.sha256


@torch.inference_mode()
def one_after_the_other(
    settings: CacheTeacherSettings, loaded: LoadedModel, samples: SampleSet, bucketed: bool
) -> Clock:
    """The time of each part over all samples, nothing at the same time as anything else."""
    clock = Clock()
    teacher = open_hf_teacher(settings, loaded)
    window = settings.batch_size * (settings.bucket_window if bucketed else 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_writer(settings, Path(folder) / "cache", teacher, samples) as writer,
    ):
        for start in range(0, len(samples), window):
            with clock.part("read images"):
                read = [in_memory(sample) for sample in samples[start : start + window]]
            with clock.part("encode"):
                encoded = [loaded.encoder.encode(sample) for sample in read]
            for bucket in length_buckets([len(sample.input_ids) for sample in encoded], settings.batch_size):
                score(teacher, [encoded[place] for place in bucket], writer, clock)
        with clock.part("write"):
            writer.complete()
    return clock


def in_memory(sample: Sample) -> Sample:
    """The sample with its image read."""
    return sample if sample.image is None else dataclasses.replace(sample, image=InMemory(sample.image.load()))


def score(teacher: HuggingFaceTeacher, encoded: Sequence[EncodedSample], writer: CacheWriter, clock: Clock) -> None:
    """One batch, part by part, into the writer."""
    with clock.part("pad and copy"):
        batch = teacher.batch(encoded)
    with clock.part("forward"):
        rows, focus = teacher.forward(batch)
    with clock.part("head and top-k"):
        targets, _ = teacher.targets(rows, len(encoded))
    with clock.part("cut records"):
        records = teacher.records(targets, rows, focus, encoded)
    with clock.part("write"):
        writer.extend(records)


def whole_run(settings: CacheTeacherSettings, loaded: LoadedModel, samples: SampleSet) -> float:
    """The seconds of stage one over all samples, from the first image to the complete cache."""
    teacher = open_hf_teacher(settings, loaded)
    encoders = preparing_encoders(settings, teacher)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_writer(settings, Path(folder) / "cache", teacher, samples) as writer,
    ):
        start_s = time.perf_counter()
        score_all(samples, teacher, encoders, writer, settings, SilentProgress())
        writer.complete()
        return time.perf_counter() - start_s


def row(title: str, seconds: float, work: Work, peak: float) -> dict[str, Any]:
    """One run's figures."""
    return {
        "run": title,
        "seconds": seconds,
        "samples_per_s": work.num_samples / seconds,
        "answer_positions_per_s": work.num_answer_tokens / seconds,
        "share_of_peak": work.operations / seconds / peak,
    }


def show_runs(rows: list[dict[str, Any]], peak_name: str) -> None:
    """Print the tables of parts and of whole runs."""
    parts = Table(title="Seconds of each part")
    parts.add_column("part")
    timed = [row for row in rows if "parts" in row]
    for each in timed:
        parts.add_column(each["run"].partition(", ")[2], justify="right")
    for name in timed[0]["parts"]:
        cells = [f"{each['parts'][name]:.2f} ({each['parts'][name] / each['seconds']:.0%})" for each in timed]
        parts.add_row(name, *cells)
    Console().print(parts, table_of(rows, f"Runs; share of the peak of {peak_name}"))


def show_backends(rows: list[dict[str, Any]], peak_name: str) -> None:
    """Print the table of backends: of ratios the median and the range."""
    absent = "" if HAS_VLLM else "; vLLM is not installed: its rows are left out"
    table = Table(title=f"Backends, scoring ready samples{absent}", caption=f"share of the peak of {peak_name}")
    for name in ("run", "positions/s", "of peak", *RATIOS):
        table.add_column(name, justify="left" if name == "run" else "right")
    for each in rows:
        spreads = ["{1:.2f} ({0:.2f}-{2:.2f})".format(*each[name]) if each[name] else "" for name in RATIOS]
        table.add_row(each["run"], f"{each['answer_positions_per_s']:,.1f}", f"{each['share_of_peak']:.1%}", *spreads)
    Console().print(table)


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """One line per row."""
    table = Table(title=title)
    for name in ("run", "seconds", "samples/s", "answer positions/s", "share of peak"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for each in rows:
        figures = [each["seconds"], each["samples_per_s"], each["answer_positions_per_s"]]
        table.add_row(each["run"], *(f"{figure:,.1f}" for figure in figures), f"{each['share_of_peak']:.1%}")
    return table


if __name__ == "__main__":
    main()

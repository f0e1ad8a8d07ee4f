"""What a vision cache saves: optimizer steps with the tower, and with its rows, of the same samples in turn.

    python benchmarks/vision_reuse.py [--device cpu|cuda] [--quick] [--pairs N] [--json FILE]

Students are LLaVA structures of random weights whose tower has 336 pixels and patches of 14, as CLIP ViT-L/14-336; its
width and the language model's are scaled down on a CPU. A step is all of it in one process, nothing prepared ahead:
reading and processing the batch's photographs (640 x 480, JPEG) or hashing their files and reading rows, forward,
backward, update. The figure is the median of the pairs' ratios, with the range of the middle half.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmark_teacher_world import Shape, save_samples, save_teacher
from betakd_cache import open_cache
from betakd_stages.caching.vision import cache_vision
from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample
from betakd_stages.distillation.cached_vision import TrainingEncoder, rows_encoder
from betakd_stages.distillation.distiller import Distiller, trained_parameters
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.models.parts import freeze, parameters_by_part
from betakd_stages.objective import Objective
from betakd_stages.objective_building import build_objective
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheVisionSettings


def layers(width: int, number: int, inner: float) -> dict[str, Any]:
    """Sizes of a transformer with heads of 64."""
    sizes = {"hidden_size": width, "intermediate_size": round(inner * width), "num_hidden_layers": number}
    return {**sizes, "num_attention_heads": width // 64}


TINY = Shape(112, layers(128, 4, 4), layers(128, 2, 2.7), 4_000, torch.float32)
SMALL, MIDDLE = (
    Shape(336, layers(384, 12, 4), layers(width, number, 2.7), 8_000, torch.float32)
    for width, number in ((256, 4), (512, 8))
)
LARGE = Shape(336, layers(1024, 24, 4), layers(2048, 24, 2.75), 32_000, torch.float32)
SHAPES = {"cpu": [SMALL, MIDDLE], "cuda": [LARGE]}
BATCH = {"cpu": 2, "cuda": 16}
NUM_SAMPLES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a student of 112 pixels, and two pairs")
    parser.add_argument("--pairs", type=int, default=8, help="how many pairs of steps are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; run it where there is one, or with --device cpu")
    torch.set_num_threads(arguments.threads)
    shapes, num_pairs = ([TINY], 2) if arguments.quick else (SHAPES[arguments.device], arguments.pairs)
    rows = [measure(shape, arguments.device, num_pairs) for shape in shapes]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(shape: Shape, device: str, num_pairs: int) -> dict[str, Any]:
    """One row: a student of this shape with its tower and without, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model, _ = save_teacher(place / "student", shape, device)
        model.save_pretrained(place / "student")
        del model
        data = save_samples(place / "data", NUM_SAMPLES)
        start_s = time.perf_counter()
        settings = CacheVisionSettings(student=str(place / "student"), data=data, batch_size=BATCH[device])
        written = cache_vision(settings, str(place / "vision"), progress=SilentProgress())
        seconds_per_image = (time.perf_counter() - start_s) / written.num_images
        student = load_model(place / "student")
        student.model.to(device)  # type: ignore[arg-type]  # torch's own signature
        freeze(student.model, train_vision_tower=False, train_projector=True)
        rows = rows_encoder(student, open_cache(place / "vision"), None)
        samples = [sample for sample in load_samples(data) if sample.image is not None]
        found = timed(student, [student.encoder, rows], samples, BATCH[device], num_pairs)
    parts = parameters_by_part(student.model)
    sizes = {name: sum(parameter.numel() for parameter in parts[name].values()) for name in parts}
    ratios = [tower["step_s"] / cached["step_s"] for tower, cached in found]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    tower, cached = (
        {key: statistics.median(one[key] for one in side) for key in side[0]} for side in zip(*found, strict=True)
    )
    return {
        "tower_parameters": sizes["vision tower"],
        "language_parameters": sizes["language"],
        "batch_size": BATCH[device],
        "step_with_tower_s": tower["step_s"],
        "prepare_with_tower_s": tower["prepare_s"],
        "step_with_cache_s": cached["step_s"],
        "prepare_with_cache_s": cached["prepare_s"],
        "ratio": ratio,
        "ratio_middle_half": [low, high],
        "bytes_per_image": written.size_bytes / written.num_images,
        "caching_s_per_image": seconds_per_image,
    }


def timed(
    student: LoadedModel,
    encoders: Sequence[TrainingEncoder],
    samples: Sequence[Sample],
    batch_size: int,
    num_pairs: int,
) -> list[tuple[dict[str, float], ...]]:
    """The seconds of each step and of what prepares it, pair after pair; a first pair warms up and does not count."""
    distiller = Distiller(student.model, labels_alone(), student.encoder.vocabulary_size, None)
    optimizer = torch.optim.AdamW(trained_parameters(distiller), lr=1e-5)
    found = []
    for number in range(num_pairs + 1):
        places = range(number * batch_size, (number + 1) * batch_size)
        chosen = [samples[place % len(samples)] for place in places]
        found.append(tuple(one_step(distiller, optimizer, encoder, chosen) for encoder in encoders))
    return found[1:]


def labels_alone() -> Objective:
    """The objective of fine-tuning: the teacher's cache is read alike on both sides."""
    return build_objective(
        energies=[],
        features=[],
        weighting="fixed",
        weighting_settings={},
        weighting_inputs=None,
        semantics="paper",
        ce_weight=1.0,
        reduction="sample",
        teacher_features={},
        student_feature_sizes={},
    )


def one_step(
    distiller: Distiller, optimizer: torch.optim.Optimizer, encoder: TrainingEncoder, samples: Sequence[Sample]
) -> dict[str, float]:
    """The seconds of one step on these samples."""
    device = distiller.student.device
    start_s = time.perf_counter()
    batch = encoder.collate([encoder.encode(sample) for sample in samples])
    prepared_s = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = distiller({name: value.to(device) for name, value in batch.items()}).total / len(samples)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    end_s = time.perf_counter()
    return {"prepare_s": prepared_s - start_s, "step_s": end_s - start_s}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table; milliseconds of a batch, of which those of preparing it in brackets."""
    table = Table(title="Optimizer steps with the vision tower and with a vision cache")
    for name in ("tower", "language model", "batch", "with tower, ms", "with cache, ms", "ratio", "MB an image"):
        table.add_column(name, justify="right")
    for row in rows:
        low, high = row["ratio_middle_half"]
        table.add_row(
            f"{row['tower_parameters'] / 1e6:.1f} M",
            f"{row['language_parameters'] / 1e6:.1f} M",
            str(row["batch_size"]),
            *(
                f"{1e3 * row[f'step_with_{side}_s']:.0f} ({1e3 * row[f'prepare_with_{side}_s']:.1f})"
                for side in ("tower", "cache")
            ),
            f"{row['ratio']:.2f} ({low:.2f} .. {high:.2f})",
            f"{row['bytes_per_image'] / 1e6:.3f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

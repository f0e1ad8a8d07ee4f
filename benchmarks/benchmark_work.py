"""How much work samples are to a teacher, and how much of it a device could do at best."""

import time
from dataclasses import dataclass

import torch

from betakd_stages.data.sample import SampleSet
from betakd_stages.models.loading import LoadedModel

PEAKS_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "A10": 125.0,
}
"""Dense bfloat16 by what a card's name holds, from NVIDIA's data sheets; the first match counts."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the samples are, however they are run."""

    num_samples: int
    num_answer_tokens: int
    operations: float


def measure_work(loaded: LoadedModel, samples: SampleSet) -> Work:
    """The work that these samples are, padding left out."""
    model, encoder = loaded.model, loaded.encoder
    vision = sum(p.numel() for name, p in model.named_parameters() if "vision_tower" in name or "projector" in name)
    head, embedding = (
        sum(p.numel() for p in module.parameters())
        for module in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    language = sum(p.numel() for p in model.parameters()) - vision - head - embedding
    texts = [encoder.encode_text(sample) for sample in samples]
    num_tokens = sum(len(ids) for ids, _ in texts)
    num_answer_tokens = sum(int((labels >= 0).sum()) for _, labels in texts)
    num_patches = sum(sample.image is not None for sample in samples) * (encoder.num_image_tokens or 0)
    operations = 2.0 * (vision * num_patches + language * num_tokens + head * num_answer_tokens)
    return Work(len(samples), num_answer_tokens, operations)


def device_peak(device: str, given_tflops: float | None) -> tuple[str, float]:
    """What the share of the peak refers to, in words, and operations per second."""
    if given_tflops is not None:
        return f"{given_tflops:g} TFLOPS as given", given_tflops * 1e12
    if device == "cuda":
        name = torch.cuda.get_device_name()
        known = next((peak for part, peak in PEAKS_TFLOPS.items() if part in name), None)
        if known is None:
            raise SystemExit(f"the peak of {name} is not known: give --peak-tflops")
        return f"{name}, {known:g} TFLOPS dense bfloat16", known * 1e12
    matrix = torch.randn(1024, 1024)
    seconds = []
    for _ in range(30):
        start_s = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start_s)
    peak = 2 * 1024**3 / min(seconds)
    return f"CPU, {torch.get_num_threads()} thread(s), {peak / 1e9:.0f} GFLOPS in a float32 product of 1024", peak

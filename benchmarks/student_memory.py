"""What the layers of a student keep from the forward pass until the backward pass: counted, not estimated, from the
tensors that autograd saves.

    python benchmarks/student_memory.py [--json FILE]

One layer of Llama's design keeps a d + b f bytes of every token, d its width, f that of its MLP. Small students of
three sizes, loaded and adapted as `distill` does it, give a and b; they do not depend on the size. What comes on top
for each head and each row of an adapter is left out. Copies are of weights, in 16 bits: bytes per weight of the layer.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from betakd_stages.distillation.student import load_student
from betakd_stages.models.tiny import TinySize, tiny_image_processor, tiny_model, tiny_tokenizer
from betakd_stages.settings import DistillSettings

NUM_TOKENS = 48
WIDTH, MLP_WIDTH, NUM_LAYERS = 2048, 5632, 24
"""Of the language model of MobileVLM V2 1.7B."""
KINDS = ("none", "lora", "qlora")
COLUMNS: dict[str, Literal["left", "right"]] = {
    "adapter": "left",
    "precision": "left",
    "checkpointing": "left",
    "a (times d)": "right",
    "b (times f)": "right",
    "MB": "right",
    "copies": "right",
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of tensors with a row for every token, and of others."""

    activations: int
    copies: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    rows = measure()
    table = Table(title="What a layer keeps of a token in bytes, a 1.7B student's layers of one in MB, and of a weight")
    for name, justify in COLUMNS.items():
        table.add_column(name, justify=justify)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure() -> list[dict[str, str | float]]:
    """One row for each way to train."""
    rows: list[dict[str, str | float]] = []
    for kind in KINDS:
        for precision in TYPES:
            for checkpointing in (False, True):
                small, wide, wide_mlp = (
                    layer_bytes(width, mlp_width, kind, precision, checkpointing)
                    for width, mlp_width in ((64, 128), (128, 128), (64, 192))
                )
                per_width = (wide.activations - small.activations) / 64 / NUM_TOKENS
                per_mlp_width = (wide_mlp.activations - small.activations) / 64 / NUM_TOKENS
                rows.append(
                    {
                        "adapter": kind,
                        "precision": precision,
                        "checkpointing": str(checkpointing).lower(),
                        "a": per_width,
                        "b": per_mlp_width,
                        "megabytes": NUM_LAYERS * (per_width * WIDTH + per_mlp_width * MLP_WIDTH) / 1e6,
                        "copies": small.copies / (4 * 64 * 64 + 3 * 64 * 128),
                    }
                )
    return rows


def layer_bytes(width: int, mlp_width: int, kind: str, precision: str, checkpointing: bool) -> Kept:
    """What one layer keeps: what a student of three layers keeps more than one of two."""
    with tempfile.TemporaryDirectory() as folder:
        three, two = (
            kept_bytes(
                save_student(Path(folder) / str(layers), width, mlp_width, layers), kind, precision, checkpointing
            )
            for layers in (3, 2)
        )
    return Kept(three.activations - two.activations, three.copies - two.copies)


def save_student(folder: Path, width: int, mlp_width: int, num_layers: int) -> Path:
    config = tiny_model(TinySize(width, 1, num_layers, head_width=width), seed=0).config
    config.get_text_config().intermediate_size = mlp_width
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return folder


def kept_bytes(student: Path, kind: str, precision: str, checkpointing: bool) -> Kept:
    """What autograd keeps of one forward pass of the language model, its own weights apart."""
    settings = DistillSettings.model_validate(
        {
            "student": str(student),
            "data": "digits:transfer",
            "objective": {"energies": []},
            "adapter": {"kind": kind, "rank": 1},
            "training": {"precision": precision, "gradient_checkpointing": checkpointing},
        }
    )
    decoder = load_student(settings).model.train().get_decoder()
    weights = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    embeddings = torch.randn(1, NUM_TOKENS, decoder.config.hidden_size, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", TYPES[precision], enabled=precision != "fp32"),
    ):
        decoder(inputs_embeds=embeddings, use_cache=False)
    sizes = [(NUM_TOKENS in tensor.shape, tensor.untyped_storage().nbytes()) for tensor in kept.values()]
    return Kept(
        sum(size for of_tokens, size in sizes if of_tokens), sum(size for of_tokens, size in sizes if not of_tokens)
    )


if __name__ == "__main__":
    main()

"""What stage one's benchmark runs: LLaVA teachers of random weights, and photographs with talk of many lengths."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from betakd_stages.encoding import Encoder
from betakd_stages.models.loading import load_encoder
from betakd_stages.models.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS

PHOTOGRAPH = (640, 480)
NUM_PHOTOGRAPHS = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a teacher: the tower's and the language model's."""

    image_size: int
    vision: dict[str, Any]
    language: dict[str, Any]
    vocabulary_size: int
    dtype: torch.dtype


def _tower(width: int, num_layers: int) -> dict[str, Any]:
    heads = max(width // 64, 2)
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
    }


def _language(width: int, num_layers: int, inner: int | None = None) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner or width * 11 // 4,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(width // 128, 2),
    }


SMALL = Shape(
    image_size=112,
    vision={"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
    language={"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
    vocabulary_size=8_000,
    dtype=torch.float32,
)
WIDE = Shape(
    image_size=336,
    vision={"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
    language={"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8},
    vocabulary_size=32_000,
    dtype=torch.float32,
)
"""On a CPU, what the backends are compared with: image tokens and vocabulary of LLaVA 1.5."""
LARGE = Shape(
    image_size=336,
    vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    language={"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    vocabulary_size=32_000,
    dtype=torch.bfloat16,
)

SHAPES = {
    "quick student": Shape(112, _tower(128, 2), _language(128, 2), 8_000, torch.float32),
    "quick teacher": Shape(112, _tower(128, 2), _language(256, 4), 8_000, torch.float32),
    "cpu student": Shape(112, _tower(128, 4), _language(512, 6), 32_000, torch.float32),
    "cpu teacher": Shape(112, _tower(128, 4), _language(1024, 12), 32_000, torch.float32),
    "cuda student": Shape(336, _tower(1024, 24), _language(2048, 24, 5632), 32_000, torch.float32),
    "cuda teacher": LARGE,
}
"""Students and teachers side by side: on a GPU MobileVLM V2's sizes, on a CPU a fraction of them."""


def save_teacher(folder: Path, shape: Shape, device: str) -> tuple[PreTrainedModel, Encoder]:
    """A teacher of this shape on a device, and its encoder, whose files are in `folder`; the weights are not.

    `model.save_pretrained(folder)` adds them, for those who read a folder.
    """
    tokenizer = _tokenizer(shape.vocabulary_size)
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision, image_size=shape.image_size, patch_size=14),
        text_config=LlamaConfig(
            **shape.language, **ids, vocab_size=shape.vocabulary_size, max_position_embeddings=2048
        ),
        image_token_index=tokenizer.get_vocab()["<image>"],
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": shape.image_size, "width": shape.image_size}
    CLIPImageProcessorPil(size={"shortest_edge": shape.image_size}, crop_size=size).save_pretrained(folder)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(default)
    return model, load_encoder(folder)


def save_samples(folder: Path, number: int, log_median_words: float = 3.0) -> str:
    """The data specification of so many samples: most answers are short, some are long."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for index in range(NUM_PHOTOGRAPHS):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photograph = Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
        photograph.save(folder / "images" / f"{index}.jpg", quality=90)
    entries = []
    for index in range(number):
        question, answer = generator.integers(5, 60), min(400, round(generator.lognormal(log_median_words, 1.2)) + 1)
        talk = [
            {"from": "human", "value": _words(generator, int(question))},
            {"from": "gpt", "value": _words(generator, int(answer))},
        ]
        image = {} if index % 5 == 0 else {"image": f"{index % NUM_PHOTOGRAPHS}.jpg"}
        entries.append({"id": str(index), **image, "conversations": talk})
    (folder / "data.json").write_text(json.dumps(entries))
    return f"llava:{folder}/data.json?images={folder}/images"


def _words(generator: np.random.Generator, number: int) -> str:
    return " ".join(f"w{word}" for word in generator.integers(0, 5_000, number))


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    special = (*SPECIAL_TOKENS, "assistant:")
    words = (*special, *(f"w{word}" for word in range(size - len(special))))
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )

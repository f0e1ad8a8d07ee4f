"""Tiny models in a real architecture: CLIP tower, two-layer projector and Llama, in transformers' LLaVA structure.

They are for the demo and the tests: minutes on a CPU, saved and loaded like any other checkpoint. Nothing here stands
in for a 7B model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from betakd_stages.data.digits import DIGIT_SIZE, QUESTIONS, card_size

SPECIAL_TOKENS = ("<pad>", "<unk>", "</s>", "<image>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}assistant: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True, slots=True)
class TinySize:
    """Widths and depths of a tiny model."""

    width: int
    vision_layers: int
    language_layers: int
    head_width: int = 16


TEACHER_SIZE = TinySize(width=64, vision_layers=1, language_layers=2)
STUDENT_SIZE = TinySize(width=32, vision_layers=1, language_layers=2)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the words of the digits questions; numbers are split into digits."""
    words = sorted({word for question in QUESTIONS.values() for word in question.split()} | {"yes", "no", "assistant:"})
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *"0123456789", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_image_processor() -> CLIPImageProcessorPil:
    """CLIP's image processor for digit cards: no resizing, pixels to -1..1."""
    return CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        image_mean=[0.3, 0.3, 0.3],
        image_std=[0.4, 0.4, 0.4],
    )


def tiny_model(
    size: TinySize, seed: int, question_types: Sequence[str] = tuple(QUESTIONS)
) -> LlavaForConditionalGeneration:
    """A LLaVA model for the cards of these question types, with random weights, the same for the same seed."""
    image_size = card_size(question_types)
    tokenizer = tiny_tokenizer()
    common: dict[str, Any] = {
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_attention_heads": size.width // size.head_width,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **common, num_hidden_layers=size.vision_layers, image_size=image_size, patch_size=DIGIT_SIZE
        ),
        text_config=LlamaConfig(
            **common,
            num_hidden_layers=size.language_layers,
            num_key_value_heads=size.width // size.head_width,
            vocab_size=len(tokenizer),
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.get_vocab()["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(image_size // DIGIT_SIZE) ** 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        _initialise_for_small_widths(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _initialise_for_small_widths(model: nn.Module) -> None:
    """Draw weights with deviation 1/sqrt(fan_in): transformers' default of 0.02 cripples models this narrow."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, nn.Embedding):
            is_position = name.endswith("position_embedding")
            nn.init.normal_(module.weight, std=0.3 if is_position else 0.5)


def save_tiny_model(folder: Path, size: TinySize, seed: int, question_types: Sequence[str] = tuple(QUESTIONS)) -> Path:
    """`folder`, holding the model, tokenizer and image processor as `from_pretrained` expects them."""
    tiny_model(size, seed, question_types).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return folder

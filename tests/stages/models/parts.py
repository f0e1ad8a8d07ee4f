"""Folders of tiny language models and vision towers, from which LLaVA models are built."""

from pathlib import Path

import torch
from tests.stages.models.families import language, qwen_tokenizer, siglip
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil


def save_language_model(folder: Path, seed: int = 0, width: int = 32, num_rows: int = 320) -> Path:
    """`folder` with a Qwen2 model of so many rows, padded beyond its tokenizer as Qwen2.5's are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(**language(width, num_rows, bos_token_id=None, eos_token_id=None), initializer_range=0.2)
        )
    model.save_pretrained(folder)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def save_clip(folder: Path, seed: int = 0) -> Path:
    """`folder` with a CLIP tower for 16 x 16 pixels, and its image processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {**siglip(), "num_hidden_layers": 3}
        CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, seed: int = 0) -> Path:
    """`folder` with both towers of a SigLIP model, as published, and its image processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        special = {"vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        vision = {**siglip(), "num_hidden_layers": 3}
        SiglipModel(SiglipConfig(text_config={**text, **special}, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder

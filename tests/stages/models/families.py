"""Tiny random models in the real architecture of every family tested, saved as `save_pretrained` does.

Tokenizers are byte-level, with the family's special tokens; weights are random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.stages.models import templates
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    GenerationConfig,
    InternVLConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
MERGES = (("Ċ", "Ċ"), ("Ġ", "A"), ("c", "a"), ("ca", "t"))


def byte_tokenizer(special: Sequence[str], **named: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, and special tokens behind them, in order."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate([*bytes_, *("".join(pair) for pair in MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)


@dataclass(frozen=True, slots=True)
class Family:
    """How a tiny model of a family is made, for a width of its language model and a number of rows of its head."""

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    template: str
    image_processor: Callable[[], Any]
    config: Callable[[PreTrainedTokenizerFast, int, int], Any]
    end: str
    processor_settings: str = "{}"

    def save(self, folder: Path, seed: int = 0, width: int = 32, num_rows: int = 320) -> Path:
        """`folder` with the model, its tokenizer, processor and chat template."""
        tokenizer = self.tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(self.config(tokenizer, width, num_rows))
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.2)
        model.generation_config = GenerationConfig(
            eos_token_id=[tokenizer.convert_tokens_to_ids(self.end), tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.image_processor().save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")
        if self.processor_settings != "{}":
            (folder / "processor_config.json").write_text(self.processor_settings, encoding="utf-8")
        return folder


def language(width: int, num_rows: int, **more: Any) -> dict[str, Any]:
    """The fields that the language models of all families have."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": num_rows,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        **more,
    }


def siglip(**more: Any) -> dict[str, Any]:
    """A tower of 16 patches for 16 x 16 pixels."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {**sizes, "image_size": 16, "patch_size": 4, **more}


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.get_vocab()[token])


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """With the special tokens of Qwen2.5 that matter here, and its way to end a turn."""
    special = [*QWEN_TOKENS, "<|video_pad|>", "<image>", "<video>"]
    return byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def qwen_vl_images() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    )


def _qwen_vl_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {field: _id(tokenizer, token) for field, token in names.items()}


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast, width: int, num_rows: int) -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [width // 8, width // 16, width // 16]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    return Qwen2_5_VLConfig(
        text_config=language(width, num_rows, rope_parameters=rope),
        vision_config={**vision, "out_hidden_size": width, "window_size": 16, "fullatt_block_indexes": [1]},
        tie_word_embeddings=True,
        **_qwen_vl_tokens(tokenizer),
    )


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast, width: int, num_rows: int) -> Qwen3VLConfig:
    sections = [width // 8, width // 16, width // 16]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": sections, "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    return Qwen3VLConfig(
        text_config=language(width, num_rows, rope_parameters=rope, head_dim=width // 2),
        vision_config={
            **vision,
            "out_hidden_size": width,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=True,
        **_qwen_vl_tokens(tokenizer),
    )


def smolvlm_tokenizer() -> PreTrainedTokenizerFast:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
        "<global-img>",
        *tiles,
    ]
    return byte_tokenizer(special, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>")


def _smolvlm(tokenizer: PreTrainedTokenizerFast, width: int, num_rows: int) -> SmolVLMConfig:
    return SmolVLMConfig(
        text_config={"model_type": "llama", **language(width, num_rows, pad_token_id=tokenizer.pad_token_id)},
        vision_config=siglip(),
        scale_factor=2,
        image_token_id=_id(tokenizer, "<image>"),
        tie_word_embeddings=True,
    )


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    images = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    return byte_tokenizer(
        [*special, *images.values()],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=images,
    )


def _gemma3(tokenizer: PreTrainedTokenizerFast, width: int, num_rows: int) -> Gemma3Config:
    return Gemma3Config(
        text_config=language(width, num_rows, head_dim=width // 2, pad_token_id=tokenizer.pad_token_id),
        vision_config=siglip(vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )


def _llava_onevision(tokenizer: PreTrainedTokenizerFast, width: int, num_rows: int) -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **language(width, num_rows)},
        vision_config={"model_type": "siglip_vision_model", **siglip(vision_use_head=False)},
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def internvl_tokenizer() -> PreTrainedTokenizerFast:
    images = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *images.values()],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=images,
    )


def _internvl(tokenizer: PreTrainedTokenizerFast, width: int, num_rows: int) -> InternVLConfig:
    vision = {key: value for key, value in siglip().items() if key not in ("image_size", "patch_size")}
    return InternVLConfig(
        text_config={"model_type": "qwen2", **language(width, num_rows, tie_word_embeddings=False)},
        vision_config={**vision, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )


FAMILIES = {
    "qwen2_5_vl": Family(qwen_tokenizer, templates.QWEN2_5_VL, qwen_vl_images, _qwen2_5_vl, "<|im_end|>"),
    "qwen3_vl": Family(qwen_tokenizer, templates.QWEN3_VL, qwen_vl_images, _qwen3_vl, "<|im_end|>"),
    "smolvlm": Family(
        smolvlm_tokenizer,
        templates.SMOLVLM,
        lambda: SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        _smolvlm,
        "<end_of_utterance>",
        '{"processor_class": "SmolVLMProcessor", "image_seq_len": 4}',
    ),
    "gemma3": Family(
        gemma_tokenizer,
        templates.GEMMA3,
        lambda: Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        _gemma3,
        "<end_of_turn>",
        '{"processor_class": "Gemma3Processor", "image_seq_length": 4}',
    ),
    "llava_onevision": Family(
        qwen_tokenizer,
        templates.LLAVA_ONEVISION,
        lambda: LlavaOnevisionImageProcessorPil(
            size={"height": 16, "width": 16}, image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]]
        ),
        _llava_onevision,
        "<|im_end|>",
        '{"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16, '
        '"vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}',
    ),
    "internvl": Family(
        internvl_tokenizer,
        templates.INTERNVL,
        lambda: GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=3),
        _internvl,
        "<|im_end|>",
        '{"processor_class": "InternVLProcessor", "image_seq_length": 4}',
    ),
}

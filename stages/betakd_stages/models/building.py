"""LLaVA models out of a language model and a vision tower, such as LLaVA-Qwen.

The parts are folders as saved by save_pretrained. The projector, two linear layers with a GELU between them, is new:
train it before anything else, or with everything else.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from betakd_stages.encoding.llava import CLASS_TOKENS, LlavaEncoder
from betakd_stages.errors import ConfigError, ModelError
from betakd_stages.models.guards import require_usable
from betakd_stages.models.loading import LOADING_ERRORS, first_line, require_complete
from betakd_stages.models.parts import parameters_by_part

TOWERS: dict[str, Any] = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}
FEATURE_LAYER = -2
IMAGE_TOKEN = "<|image_pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE_TOKEN\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, with the image on a line of its own; IMAGE_TOKEN is replaced."""


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """What was written: number of parameters by part, tied ones counted once."""

    folder: Path
    num_parameters: Mapping[str, int]


def build_model(
    language_model: Path, vision_tower: Path, out: Path, *, seed: int = 0, image_token: str = IMAGE_TOKEN
) -> BuiltModel:
    """A LLaVA model in `out`, from a folder of a language model and one with a CLIP or SigLIP tower.

    Raises ModelError where a part is missing, of another kind or does not fit, ConfigError where `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty: choose another --out, or remove it")
    tokenizer = _load_tokenizer(language_model, image_token)
    language = _load_language_model(language_model)
    tower = load_tower(vision_tower)
    images = _load_image_processor(vision_tower, tower.config.image_size)
    model = join(language, tower, tokenizer.convert_tokens_to_ids(image_token), seed)
    ends = [tokenizer.convert_tokens_to_ids(TURN_END), tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    encoder = LlavaEncoder(tokenizer, images, model.config, model.generation_config)
    require_usable(model, encoder)
    temporary = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    encoder.save(temporary)
    if out.is_dir():
        out.rmdir()
    temporary.rename(out)
    counts = {part: sum(p.numel() for p in named.values()) for part, named in parameters_by_part(model).items()}
    return BuiltModel(out, counts)


def join(
    language: PreTrainedModel, tower: PreTrainedModel, image_token_id: int, seed: int
) -> LlavaForConditionalGeneration:
    """The LLaVA model of these two, in the language model's number type, with a projector drawn from `seed`.

    The projector sees the tower's second to last layer; of CLIP's without the class token, which SigLIP has not.
    """
    vision = tower.config
    has_class_token = CLASS_TOKENS[vision.model_type] > 0
    config = LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_index=image_token_id,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default" if has_class_token else "full",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]), torch.device(language.device):
        torch.manual_seed(seed)
        model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.model.vision_tower = tower
    model.model.language_model = language.base_model
    model.lm_head = language.get_output_embeddings()
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.to(dtype=language.dtype)
    return model.eval()


def load_tower(folder: Path) -> PreTrainedModel:
    """The vision tower of a folder that holds one, alone or beside a tower for text.

    Raises ModelError for another kind and for missing weights.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        config = getattr(config, "vision_config", config)
        if config.model_type not in TOWERS:
            raise ModelError(
                f"{folder} is of model type {config.model_type!r}: a vision tower is CLIP or SigLIP, such as "
                "openai/clip-vit-large-patch14-336"
            )
        if config.model_type == "siglip_vision_model":
            config.vision_use_head = False  # it pools patches, which the projector takes one by one
        tower, report = TOWERS[config.model_type].from_pretrained(
            folder, config=config, local_files_only=True, weights_only=True, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the vision tower in {folder} cannot be loaded ({first_line(error)})") from None
    # What is there beside the tower's is a tower for text, or the pooling head.
    require_complete(folder, {**report, "unexpected_keys": ()})
    return tower


def _load_language_model(folder: Path) -> PreTrainedModel:
    family: Any = AutoModelForCausalLM
    try:
        model, report = family.from_pretrained(
            folder, local_files_only=True, weights_only=True, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        raise ModelError(f"the language model in {folder} cannot be loaded ({first_line(error)})") from None
    require_complete(folder, report)
    return model


def _load_tokenizer(folder: Path, image_token: str) -> Any:
    """The tokenizer with ChatML's prompts. No token is added: the vocabulary stays the one of the language model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except LOADING_ERRORS as error:
        raise ModelError(f"the tokenizer of {folder} cannot be read ({first_line(error)}): copy it again") from None
    known = tokenizer.get_added_vocab()
    for token in (TURN_START, TURN_END, image_token):
        if token not in known:
            raise ModelError(
                f"the tokenizer of {folder} lacks {token!r}: give a language model with ChatML's tokens, such as "
                "Qwen2.5, and one of its own special tokens as --image-token"
            )
    tokenizer.eos_token = TURN_END
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = TURN_END
    tokenizer.chat_template = CHATML.replace("IMAGE_TOKEN", image_token)
    return tokenizer


def _load_image_processor(folder: Path, size: int) -> Any:
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder} lacks an image processor ({first_line(error)})") from None
    for shape in ((size, 2 * size), (2 * size, size)):
        height, width = processor(Image.new("RGB", shape), return_tensors="np")["pixel_values"].shape[2:]
        if (height, width) != (size, size):
            raise ModelError(
                f"the image processor of {folder} makes images of {height} x {width} pixels, the vision tower takes "
                f"{size} x {size}: correct preprocessor_config.json"
            )
    return processor

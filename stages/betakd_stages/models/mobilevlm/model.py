"""MobileVLM V2 on transformers' LLaVA: the same tower, language model and forward pass, with the LDPv2 projector.

Folders are in the published layout in both directions: what is saved here, the published code loads.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaModel

from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig
from betakd_stages.models.mobilevlm.projector import LightweightDownsampleProjector

logger = logging.getLogger(__name__)

PUBLISHED_NAMES = {
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.mlp.": "model.mm_projector.mlp.mlp.",
    "model.multi_modal_projector.position.": "model.mm_projector.peg.peg.0.",
    "model.language_model.embed_tokens.": "model.embed_tokens.",
    "model.language_model.layers.": "model.layers.",
    "model.language_model.norm.": "model.norm.",
    "lm_head.": "lm_head.",
}
"""What a tensor's name begins with, here and as published."""
KEY_MAPPING = {f"^{re.escape(published)}": own for own, published in PUBLISHED_NAMES.items()}
"""The way back, as transformers takes it."""
LEFT_OUT = re.compile(r"rotary_emb\.inv_freq$|(^|\.)position_ids$|distill_")
"""Buffers of old transformers versions, and loss modules that some training code saves inside a student."""


class MobileVlmModel(LlavaModel):
    """Tower, projector and language model without the head."""

    config: MobileVlmConfig
    multi_modal_projector: Any

    def __init__(self, config: MobileVlmConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = LightweightDownsampleProjector(
            config.vision_config.hidden_size, config.text_config.hidden_size
        )
        self.post_init()


class MobileVlmForConditionalGeneration(LlavaForConditionalGeneration):
    """MobileVLM V2 with its head."""

    config: MobileVlmConfig
    _keys_to_ignore_on_load_unexpected = [LEFT_OUT.pattern]  # noqa: RUF012  # transformers' own attribute

    def __init__(self, config: MobileVlmConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)  # its own would build a LlavaModel
        self.model = MobileVlmModel(config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The model of a folder in the published layout: .safetensors or .bin (weights only), sharded or not."""
        return super().from_pretrained(folder, *args, key_mapping=KEY_MAPPING, **kwargs)

    def save_pretrained(self, folder: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json and weights in the published layout, as .safetensors."""
        published = {published_name(name): tensor for name, tensor in self.state_dict().items()}
        super().save_pretrained(folder, state_dict=published, save_original_format=False, **kwargs)

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        left_out = sorted(name for name in loading_info.unexpected_keys if LEFT_OUT.search(name))
        if left_out:
            logger.info(f"left out {len(left_out)} tensors that are no part of the model, such as {left_out[0]}")
        super()._adjust_missing_and_unexpected_keys(loading_info)


def published_name(name: str) -> str:
    """The published name of one of this model's tensors."""
    own = next(prefix for prefix in PUBLISHED_NAMES if name.startswith(prefix))
    return PUBLISHED_NAMES[own] + name.removeprefix(own)

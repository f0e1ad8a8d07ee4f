"""LLaVA's structure: one placeholder token, repeated as often as the tower has patches."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from betakd_stages.data.sample import Sample
from betakd_stages.encoding.encoder import Encoder
from betakd_stages.encoding.sample import EncodedSample
from betakd_stages.errors import DataError, ModelError

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Tokens of a tower beside those of its patches, by its model type."""


class LlavaEncoder(Encoder):
    """transformers' LLaVA with a CLIP or SigLIP tower: any image is the same number of visual tokens."""

    def save(self, folder: Path) -> None:
        """Write tokenizer and image processor, and how transformers' LlavaProcessor joins them."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        vision = self.config.vision_config
        settings = {
            "processor_class": "LlavaProcessor",
            "patch_size": vision.patch_size,
            "num_additional_image_tokens": CLASS_TOKENS[vision.model_type],
            "vision_feature_select_strategy": self.config.vision_feature_select_strategy,
            "image_token": self.image_token,
        }
        (folder / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @property
    def num_image_tokens(self) -> int:
        """One per patch, and one for the class token where the projector gets it ("full")."""
        vision = self.config.vision_config
        if vision.model_type not in CLASS_TOKENS:
            raise ModelError(
                f"the vision tower is of type {vision.model_type!r}: LLaVA is supported with {', '.join(CLASS_TOKENS)}"
            )
        tokens = (vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type]
        return tokens - (self.config.vision_feature_select_strategy == "default")

    def encode(self, sample: Sample) -> EncodedSample:
        input_ids, labels = self.encode_text(sample)
        if sample.image is None:
            return EncodedSample(sample.sample_id, input_ids, labels, {}, {}, None)
        self.require_one_image(input_ids)
        image = sample.image.load()
        pixels = self.image_processor(image.pixels, return_tensors="np")["pixel_values"]
        self._require_fitting(sample.sample_id, pixels.shape)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels)).float()
        return EncodedSample(sample.sample_id, input_ids, labels, {"pixel_values": tensor}, {}, image.sha256)

    def require_one_image(self, input_ids: Tensor) -> None:
        """Nothing; raises ModelError unless the ids `[L]` of a sample with an image have the placeholders of one."""
        found, expected = int((input_ids == self.image_token_id).sum()), self.num_image_tokens
        if found != expected:
            raise ModelError(
                f"the chat template puts {found // expected} image tokens into a prompt with one image: it must put "
                f"{self.image_token!r} once where a part of type image stands"
            )

    def _expand_image_token(self, piece: list[int]) -> list[int]:
        image_id = self.image_token_id
        return [id for token in piece for id in [token] * (self.num_image_tokens if token == image_id else 1)]

    def _require_fitting(self, sample_id: str, shape: Sequence[int]) -> None:
        """Raises DataError where an image of this shape [1, 3, H, W] does not fit the model."""
        size = self.config.vision_config.image_size
        if tuple(shape[2:]) != (size, size):
            raise DataError(
                f"sample {sample_id}: its image is {shape[2]} x {shape[3]} pixels after image processing, the model's "
                f"vision tower takes {size} x {size}: correct preprocessor_config.json, or give other images"
            )

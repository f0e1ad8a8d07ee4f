"""MobileVLM V2's image processing: CLIP's, behind a step that makes the image square."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from betakd_stages.errors import ModelError
from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of its longer side; an odd pixel of border goes right or below."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def load_image_processor(folder: Path, config: MobileVlmConfig) -> "MobileVlmImageProcessor":
    """The image processor of a model, by its configuration and CLIP's constants: published folders hold no more.

    Raises ModelError where the folder holds a preprocessor_config.json that says something else.
    """
    size = config.vision_config.image_size
    processor = MobileVlmImageProcessor(
        config.image_aspect_ratio, size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    if (folder / "preprocessor_config.json").is_file():
        saved = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True).to_dict()
        for key, expected in processor.to_dict().items():
            if key != "image_processor_type" and saved.get(key, expected) != expected:
                raise ModelError(
                    f"{folder} says {key} {saved[key]} in preprocessor_config.json, and config.json means {expected}: "
                    "make them agree, or remove preprocessor_config.json"
                )
    return processor


class MobileVlmImageProcessor(CLIPImageProcessorPil):
    """CLIP's processor; "pad" first adds a border in CLIP's mean colour, "square" lets CLIP cut off the ends."""

    image_aspect_ratio = "square"

    def __init__(self, image_aspect_ratio: str = "square", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_aspect_ratio = image_aspect_ratio

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Pixels `[3, H, W]` of one image, square where the aspect ratio is "pad"."""
        if self.image_aspect_ratio == "pad":
            colour = tuple(int(mean * 255) for mean in self.image_mean)
            image = pad_to_square(image.convert("RGB"), colour)
        return super().process_image(image, *args, **kwargs)

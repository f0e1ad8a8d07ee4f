"""A family's own processor, from a model folder: images through Pillow, videos left out.

transformers' AutoProcessor also builds the part for videos, which needs torchvision. Images do not.
"""

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from betakd_stages.errors import ModelError

PROCESSOR_FILES = (
    "*processor_config.json",
    "chat_template.*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
"""The files of a model folder that make up its processor."""
VIDEOS = "video_processor"
STAND_INS = {"smolvlm": "Idefics3Processor"}
"""Processors that write the same for images, for families whose own asks for a package that only videos need."""


def load_processor(folder: Path, model_type: str) -> ProcessorMixin:
    """The processor of a model folder.

    Raises ModelError for a family without one or one that needs what is not installed, OSError or ValueError where a
    file is missing.
    """
    name = STAND_INS.get(model_type) or PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None:
        raise ModelError(f"{folder} is of model type {model_type!r}, for which transformers has no processor")
    try:
        family = getattr(transformers, name)
        parts = [_part(folder, part) for part in family.get_attributes()]
        settings, _ = family.get_processor_dict(folder, local_files_only=True)
        processor: ProcessorMixin = _without_videos(family).from_args_and_dict(parts, settings)
    except ImportError as error:
        raise ModelError(
            f"{folder} needs {name}, which cannot be used here ({_first_sentence(error)}): install what "
            "it asks for, or use another model"
        ) from None
    return processor


def _without_videos(family: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor, content with None for videos: even to check for more takes torchvision."""

    def check(self: ProcessorMixin, name: str, argument: Any) -> Any:
        return None if name == VIDEOS else family.check_argument_for_proper_class(self, name, argument)

    return type(family.__name__, (family,), {"check_argument_for_proper_class": check})


def _part(folder: Path, name: str) -> Any:
    if name == "tokenizer":
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if name == "image_processor":
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    if name == VIDEOS:
        return None
    raise ModelError(f"{folder}: its processor wants a part {name!r}, supported are those for text, images and videos")


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].partition(". ")[0]

"""Any other family: its own processor writes the part of the prompt that holds the image, and makes the tensors."""

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, ProcessorMixin

from betakd_stages.data.sample import Sample, Turn
from betakd_stages.encoding.encoder import TEXTS_IN_MEMORY, Encoder, load_generation_config
from betakd_stages.encoding.processor_loading import PROCESSOR_FILES, load_processor
from betakd_stages.encoding.sample import IGNORED, EncodedSample
from betakd_stages.errors import DataError, ModelError

TOKEN_INPUTS = "token_type_ids"
"""How the names of inputs end that hold one number per token."""


class ProcessorEncoder(Encoder):
    """The first prompt goes through the processor together with the image, all behind it through the tokenizer."""

    def __init__(
        self,
        processor: ProcessorMixin,
        config: Any,
        generation_config: GenerationConfig | None = None,
        folder: Path | None = None,
    ) -> None:
        """`folder` is where the processor's files are, for `save`."""
        tokenizer = processor.tokenizer
        tokenizer.chat_template = processor.chat_template or tokenizer.chat_template
        super().__init__(tokenizer, processor.image_processor, config, generation_config)
        self.processor = processor
        self._folder = folder
        self._opening = functools.lru_cache(TEXTS_IN_MEMORY)(self._find_opening)
        if getattr(config, "image_token_id", None) is None:
            raise ModelError(
                f"config.json of model type {config.model_type!r} names no image_token_id: this family does not put "
                "its visual tokens among those of the text, which is what is supported"
            )

    @classmethod
    def load(cls, folder: Path) -> "ProcessorEncoder":
        """The encoder of a model folder. Raises OSError or ValueError where a part is missing."""
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return cls(load_processor(folder, config.model_type), config, load_generation_config(folder), folder)

    def save(self, folder: Path) -> None:
        """Copy the files of tokenizer and processor, those for videos too."""
        assert self._folder is not None
        for path in sorted(path for pattern in PROCESSOR_FILES for path in self._folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)

    @property
    def num_image_tokens(self) -> None:
        """None: it depends on the image."""

    @functools.cached_property
    def _image_processor_sha256(self) -> str:
        settings = {key: value for key, value in self.processor.to_dict().items() if key != "processor_class"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def encode(self, sample: Sample) -> EncodedSample:
        text_ids, text_labels = self.encode_text(sample)
        opening, num_ids = self._opening(sample.turns, sample.image is not None)
        start_ids = text_ids[: num_ids - len(self._ids(opening))]
        image = sample.image.load() if sample.image is not None else None
        outputs = self._process(sample.sample_id, opening, image.pixels if image else None)
        opening_ids = torch.cat([start_ids, outputs.pop("input_ids")[0]])
        if image and self.image_token_id not in opening_ids:  # older processors say nothing
            raise DataError(
                f"sample {sample.sample_id}: its prompt has no place for its image ({self.image_token!r}): leave it "
                "out, or mend the chat template if all are refused"
            )
        rest = text_ids[num_ids:]
        labels = torch.cat([torch.full_like(opening_ids, IGNORED), text_labels[num_ids:]])
        self.require_length(sample.sample_id, len(labels))
        token_inputs = {
            name: torch.cat([torch.zeros_like(start_ids), outputs.pop(name)[0], torch.zeros_like(rest)])
            for name in sorted(outputs)
            if name.endswith(TOKEN_INPUTS)
        }
        return EncodedSample(
            sample_id=sample.sample_id,
            input_ids=torch.cat([opening_ids, rest]),
            labels=labels,
            image_inputs=outputs if image else {},
            token_inputs=token_inputs,
            image_sha256=image.sha256 if image else None,
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _find_opening(self, turns: tuple[Turn, ...], has_image: bool) -> tuple[str, int]:
        """The first prompt, and how many of the ids of `encode_text` it and what stands before it are."""
        opening = self.segments(turns, has_image)[0][0]
        return opening, len(self._start_ids(turns, has_image)) + len(self._ids(opening))

    def _process(self, sample_id: str, text: str, image: Image.Image | None) -> dict[str, Tensor]:
        """The processor's tensors for one text, without the attention mask."""
        given = {} if image is None else {"images": [image]}
        name = type(self.processor).__name__
        try:
            outputs = dict(self.processor(text=[text], **given, add_special_tokens=False, return_tensors="pt"))
        except ValueError as error:
            raise DataError(
                f"sample {sample_id}: {name} refuses it ({str(error).strip().splitlines()[0]}): leave it out, or "
                "mend the chat template if all are refused"
            ) from None
        outputs.pop("attention_mask", None)
        for key, value in outputs.items():
            if not isinstance(value, Tensor):
                raise ModelError(f"{name} gives {key} as {type(value).__name__}, a tensor is expected: not supported")
        return outputs

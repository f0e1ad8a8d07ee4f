"""From samples to what a model eats. The answer mask comes from segments, never from counting tokens.

B samples, L tokens, H and W pixels.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from betakd_stages.data.sample import Sample, Turn
from betakd_stages.errors import DataError, ModelError

IGNORED = -100
TEXTS_IN_MEMORY = 2**15


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as a model eats it."""

    sample_id: str
    input_ids: Tensor  # int64 [L], the image placeholder repeated once per image token
    labels: Tensor  # int64 [L], the id where it is supervised, else -100
    pixel_values: Tensor | None  # float32 [3, H, W]
    image_sha256: str | None

    @property
    def answer_ids(self) -> Tensor:
        """The supervised ids, int64 [T]."""
        return self.labels[self.labels != IGNORED]


class Encoder:
    """Encodes samples for one model folder; one subclass per model family.

    `tokenizer`, `image_processor` and `config` are transformers'.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        if not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template: save one with the model (chat_template.jinja)")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config
        # Matching a cache and training both need the text of a sample; rendering and tokenising take a millisecond.
        self._encode_turns = functools.lru_cache(TEXTS_IN_MEMORY)(self._encode_conversation)

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """The encoder of a model folder. Raises OSError or ValueError where a part is missing."""
        return cls(
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
            AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
            AutoConfig.from_pretrained(folder, local_files_only=True),
        )

    def save(self, folder: Path) -> None:
        """Write to a model folder what `load` needs beside the model's own files."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    @property
    def vocabulary_size(self) -> int:
        """The tokenizer's real size; rows of the head beyond it are padding."""
        return len(self.tokenizer)

    @property
    def image_token(self) -> str:
        """The text of the image placeholder."""
        raise ModelError(f"{type(self).__name__} names no image token")

    @property
    def num_image_tokens(self) -> int:
        """How many tokens one image becomes."""
        raise ModelError(f"{type(self).__name__} counts no image tokens")

    def identity(self) -> dict[str, Any]:
        """What a cache must remember of this encoder: tokenizer, prompt template and image processing."""
        return {
            "tokenizer": {"sha256": self._tokenizer_sha256, "vocabulary_size": self.vocabulary_size},
            "prompt": {"template_sha256": hashlib.sha256(self.tokenizer.chat_template.encode()).hexdigest()},
            "image_processor": {"sha256": self._image_processor_sha256},
        }

    @functools.cached_property
    def _tokenizer_sha256(self) -> str:
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        special = sorted(map(str, self.tokenizer.all_special_tokens))
        return hashlib.sha256(json.dumps([vocabulary, special]).encode()).hexdigest()

    @functools.cached_property
    def _image_processor_sha256(self) -> str:
        settings = {key: value for key, value in self.image_processor.to_dict().items() if "_type" not in key}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def segments(self, turns: Sequence[Turn], has_image: bool) -> list[tuple[str, bool]]:
        """The conversation's text in order, each piece with whether it is supervised."""
        messages: list[dict[str, Any]] = []
        pieces: list[tuple[str, bool]] = []
        done = ""
        for index, turn in enumerate(turns):
            image = [{"type": "image"}] if index == 0 and has_image else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
            prompt = self._render(messages, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            full = self._render(messages, add_generation_prompt=False)
            if not (full.startswith(prompt) and prompt.startswith(done)):
                raise ModelError(
                    "the chat template rewrites earlier text when a turn is added: the answer mask is unsafe"
                )
            pieces += [(prompt[len(done) :], False), (full[len(prompt) :], True)]
            done = full
        return pieces

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def encode_text(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Input ids and labels, int64 [L] each; an answer's segment is supervised up to its end-of-sequence token."""
        return self._encode_turns(sample.turns, sample.image is not None)

    def _encode_conversation(self, turns: tuple[Turn, ...], has_image: bool) -> tuple[Tensor, Tensor]:
        ids: list[int] = []
        labels: list[int] = []
        for text, supervised in self.segments(turns, has_image):
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if not supervised:
                piece = self._expand_image_token(piece)
            cut = self._supervised_length(piece) if supervised else 0
            ids += piece
            labels += piece[:cut] + [IGNORED] * (len(piece) - cut)
        return torch.tensor(ids), torch.tensor(labels)

    def _supervised_length(self, piece: Sequence[int]) -> int:
        if self.tokenizer.eos_token_id not in piece:
            raise ModelError("the chat template closes an answer without the end-of-sequence token: mend the template")
        return piece.index(self.tokenizer.eos_token_id) + 1

    def _expand_image_token(self, piece: list[int]) -> list[int]:
        image_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        return [id for token in piece for id in [token] * (self.num_image_tokens if token == image_id else 1)]

    def encode(self, sample: Sample) -> EncodedSample:
        """The whole sample. Raises DataError where its image cannot be read."""
        input_ids, labels = self.encode_text(sample)
        if sample.image is None:
            return EncodedSample(sample.sample_id, input_ids, labels, None, None)
        image = sample.image.load()
        pixels = self.image_processor(image.pixels, return_tensors="np")["pixel_values"][0]
        self._require_fitting(sample.sample_id, pixels.shape)
        return EncodedSample(
            sample.sample_id, input_ids, labels, torch.from_numpy(np.ascontiguousarray(pixels)).float(), image.sha256
        )

    def _require_fitting(self, sample_id: str, shape: Sequence[int]) -> None:
        """Raises DataError where an image of this shape [3, H, W] does not fit the model."""

    def encode_prompt(self, sample: Sample) -> EncodedSample:
        """The sample up to where its first answer begins, for generation: nothing is supervised."""
        encoded = self.encode(sample)
        end = int((encoded.labels != IGNORED).nonzero()[0, 0])
        return EncodedSample(
            sample.sample_id, encoded.input_ids[:end], encoded.labels[:end], encoded.pixel_values, encoded.image_sha256
        )

    def collate(self, encoded: Sequence[EncodedSample], *, padding_side: str = "right") -> dict[str, Tensor]:
        """A padded batch: input_ids, attention_mask and labels int64 [B, L], pixel_values float [B', 3, H, W].

        B' counts the samples with an image, in order; has_image bool [B] tells which those are.
        """

        def padded(tensors: list[Tensor], value: int) -> Tensor:
            return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=padding_side)

        batch = {
            "input_ids": padded([sample.input_ids for sample in encoded], self.tokenizer.pad_token_id),
            # From lengths, never from `ids != pad`: the padding token may be the end token.
            "attention_mask": padded([torch.ones_like(sample.input_ids) for sample in encoded], 0),
            "labels": padded([sample.labels for sample in encoded], IGNORED),
        }
        batch["has_image"] = torch.tensor([sample.pixel_values is not None for sample in encoded])
        pixels = [sample.pixel_values for sample in encoded if sample.pixel_values is not None]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        return batch


class LlavaEncoder(Encoder):
    """transformers' LLaVA structure: a placeholder token, repeated once per patch of a CLIP tower."""

    @property
    def image_token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.config.image_token_id))

    @property
    def num_image_tokens(self) -> int:
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return patches + (self.config.vision_feature_select_strategy == "full")

    def _require_fitting(self, sample_id: str, shape: Sequence[int]) -> None:
        size = self.config.vision_config.image_size
        if tuple(shape[1:]) != (size, size):
            raise DataError(
                f"sample {sample_id}: its image is {shape[1]} x {shape[2]} pixels after image processing, the model's "
                f"vision tower takes {size} x {size}: correct preprocessor_config.json, or give other images"
            )

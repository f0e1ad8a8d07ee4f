"""From samples to what a model eats. The answer mask comes from segments, never from counting tokens.

B samples, L tokens, H and W pixels.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from betakd_stages.data.sample import Sample
from betakd_stages.errors import DataError, ModelError

IGNORED = -100


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

    @cached_property
    def _tokenizer_sha256(self) -> str:
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        special = sorted(map(str, self.tokenizer.all_special_tokens))
        return hashlib.sha256(json.dumps([vocabulary, special]).encode()).hexdigest()

    @cached_property
    def _image_processor_sha256(self) -> str:
        settings = {key: value for key, value in self.image_processor.to_dict().items() if "_type" not in key}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def segments(self, sample: Sample) -> list[tuple[str, bool]]:
        """The conversation's text in order, each piece with whether it is supervised."""
        messages: list[dict[str, Any]] = []
        pieces: list[tuple[str, bool]] = []
        done = ""
        for index, turn in enumerate(sample.turns):
            image = [{"type": "image"}] if index == 0 and sample.image is not None else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
            prompt = self._render(messages, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            full = self._render(messages, add_generation_prompt=False)
            if not (full.startswith(prompt) and prompt.startswith(done)):
                raise ModelError("the chat template rewrites earlier text when a turn is added: the answer mask is unsafe")
            pieces += [(prompt[len(done) :], False), (full[len(prompt) :], True)]
            done = full
        return pieces

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def encode_text(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Input ids and labels, int64 [L] each; an answer's segment is supervised up to its end-of-sequence token."""
        ids: list[int] = []
        labels: list[int] = []
        for text, supervised in self.segments(sample):
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if not supervised:
                piece = self._expand_image_token(piece)
            cut = self._supervised_length(piece, sample) if supervised else 0
            ids += piece
            labels += piece[:cut] + [IGNORED] * (len(piece) - cut)
        return torch.tensor(ids), torch.tensor(labels)

    def _supervised_length(self, piece: Sequence[int], sample: Sample) -> int:
        if self.tokenizer.eos_token_id not in piece:
            raise DataError(f"sample {sample.sample_id}: the chat template closes no answer with the end token")
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
        return EncodedSample(
            sample.sample_id, input_ids, labels, torch.from_numpy(np.ascontiguousarray(pixels)).float(), image.sha256
        )

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
        length = max(len(sample.input_ids) for sample in encoded)
        input_ids = torch.full((len(encoded), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(encoded), length), IGNORED)
        attention_mask = torch.zeros((len(encoded), length), dtype=torch.int64)
        for row, sample in enumerate(encoded):
            size = len(sample.input_ids)
            place = slice(0, size) if padding_side == "right" else slice(length - size, length)
            input_ids[row, place] = sample.input_ids
            labels[row, place] = sample.labels
            attention_mask[row, place] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
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

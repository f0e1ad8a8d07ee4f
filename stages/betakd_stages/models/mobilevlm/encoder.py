"""Samples for MobileVLM V2: the text is tokenised as one, as the published code does, and masked by place."""

import functools
import re
from pathlib import Path

import torch
from torch import Tensor

from betakd_stages.data.sample import Sample, Turn
from betakd_stages.encoding import IGNORED, LlavaEncoder
from betakd_stages.errors import DataError, ModelError
from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig
from betakd_stages.models.mobilevlm.processor import MobileVlmProcessor
from betakd_stages.models.mobilevlm.prompts import IMAGE_MARK
from betakd_stages.models.mobilevlm.tokenizer import SENTENCEPIECE_FILE

LINE_BREAK = "<0x0A>"
"""The token that ends a caption; Llama's tokenizer writes the byte."""


class MobileVlmEncoder(LlavaEncoder):
    """Supervised are an answer's tokens and its end: `</s>` in conversations, the line break of captions."""

    def __init__(
        self, processor: MobileVlmProcessor, config: MobileVlmConfig, sentencepiece_model: bytes | None
    ) -> None:
        """`sentencepiece_model` is the content of tokenizer.model, which the published code needs beside a student."""
        super().__init__(processor.tokenizer, processor.image_processor, config)
        self.processor = processor
        self._sentencepiece_model = sentencepiece_model
        if config.prompt_version == "plain":
            self.end_token_ids.append(self.tokenizer.convert_tokens_to_ids(LINE_BREAK))
        if self.vocabulary_size > config.text_config.vocab_size:
            raise ModelError(
                f"the tokenizer has {self.vocabulary_size} tokens, the model {config.text_config.vocab_size} rows: "
                "they do not belong together"
            )

    @classmethod
    def load(cls, folder: Path) -> "MobileVlmEncoder":
        """The encoder of a folder in the published layout. Raises ModelError where something is missing or foreign."""
        path = folder / SENTENCEPIECE_FILE
        return cls(
            MobileVlmProcessor.from_pretrained(folder),
            MobileVlmConfig.from_pretrained(folder, local_files_only=True),
            path.read_bytes() if path.is_file() else None,
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer. How images are processed is in the model's config.json, as published."""
        self.tokenizer.save_pretrained(folder)
        if self._sentencepiece_model is not None:
            (folder / SENTENCEPIECE_FILE).write_bytes(self._sentencepiece_model)

    @property
    def num_image_tokens(self) -> int:
        return self.processor.num_image_tokens

    @functools.cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        return re.compile(f"{super()._control_tokens.pattern}|{re.escape(IMAGE_MARK)}")

    def encode_text(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Input ids and labels, int64 [L] each. Raises DataError for text that holds a control token or the image mark,
        and for a sample that is no captioned image where prompts are plain."""
        if self.config.prompt_version == "plain" and (sample.image is None or len(sample.turns) != 1):
            raise DataError(
                f"sample {sample.sample_id}: plain prompts take one image and one turn, found "
                f"{'no image' if sample.image is None else 'an image'} and {len(sample.turns)} turns: give captions, "
                'or set prompt_version to "v1" in config.json of teacher and student'
            )
        return super().encode_text(sample)

    def _encode_conversation(self, turns: tuple[Turn, ...], has_image: bool) -> tuple[Tensor, Tensor]:
        pieces = self.segments(turns, has_image)
        ids, spans = self.processor.tokenize_with_spans("".join(text for text, _ in pieces))
        labels = [IGNORED] * len(ids)
        begin = 0
        for text, supervised in pieces:
            end = begin + len(text)
            inside = [index for index, span in enumerate(spans) if span[0] < end and span[1] > begin]
            if any(spans[index][0] < begin or spans[index][1] > end for index in inside):
                raise ModelError(
                    f"the tokenizer joins the end of a prompt with the answer behind it ({text[:20]!r}): the answer "
                    "mask is unsafe, give a Llama tokenizer"
                )
            for index in inside if supervised else ():
                labels[index] = ids[index]
            begin = end
        return torch.tensor(ids), torch.tensor(labels)

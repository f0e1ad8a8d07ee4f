"""MobileVLM V2's processor: text with `<image>` marks and images in, what the model eats out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, LlamaTokenizer, ProcessorMixin

from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig
from betakd_stages.models.mobilevlm.image_processing import MobileVlmImageProcessor, load_image_processor
from betakd_stages.models.mobilevlm.prompts import IMAGE_MARK, TEMPLATES
from betakd_stages.models.mobilevlm.tokenizer import load_tokenizer


class MobileVlmProcessor(ProcessorMixin):
    """A tokenizer, an image processor, and the rule that joins them."""

    def __init__(
        self,
        image_processor: MobileVlmImageProcessor,
        tokenizer: LlamaTokenizer,
        num_image_tokens: int = 144,
        image_token_id: int = 0,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.num_image_tokens = num_image_tokens
        self.image_token_id = image_token_id

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that transformers saves and loads one by one."""
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "MobileVlmProcessor":  # type: ignore[override]
        """The processor of a folder in the published layout. Raises ModelError where something is missing."""
        config = MobileVlmConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = load_tokenizer(Path(folder), TEMPLATES[config.prompt_version])
        image_processor = load_image_processor(Path(folder), config)
        return cls(image_processor, tokenizer, config.image_seq_length, config.image_token_id)

    def tokenize_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the place in `text` it stands for: one start token, then each stretch between marks on its
        own (it gets Llama's leading space, as in the published code), the placeholder repeated for every mark."""
        ids, spans = [self.tokenizer.bos_token_id], [(0, 0)]
        start = 0
        for number, stretch in enumerate(text.split(IMAGE_MARK)):
            if number:
                ids += [self.image_token_id] * self.num_image_tokens
                spans += [(start - len(IMAGE_MARK), start)] * self.num_image_tokens
            encoding = self.tokenizer(stretch, add_special_tokens=False, return_offsets_mapping=True)
            ids += encoding["input_ids"]
            spans += [(start + begin, start + end) for begin, end in encoding["offset_mapping"]]
            start += len(stretch) + len(IMAGE_MARK)
        return ids, spans

    def __call__(
        self, images: Sequence[Image.Image] | Image.Image | None = None, text: Sequence[str] | str = ""
    ) -> BatchFeature:
        """input_ids and attention_mask int64 `[B, L]`, padded on the left for generation, and pixel_values float32
        `[I, 3, H, W]` where there are images."""
        texts = [text] if isinstance(text, str) else text
        rows = [torch.tensor(self.tokenize_with_spans(one)[0]) for one in texts]
        batch = {
            "input_ids": pad_sequence(
                rows, batch_first=True, padding_value=self.tokenizer.pad_token_id, padding_side="left"
            ),
            "attention_mask": pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"
            ),
        }
        if images is not None:
            batch["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return BatchFeature(batch)

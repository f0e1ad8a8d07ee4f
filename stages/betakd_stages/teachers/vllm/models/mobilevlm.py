"""MobileVLM V2 in vLLM: its LLaVA with the LDPv2 projector, our image processing and the published names of weights."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models import llava
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig
from betakd_stages.models.mobilevlm.model import LEFT_OUT
from betakd_stages.models.mobilevlm.processor import MobileVlmProcessor
from betakd_stages.models.mobilevlm.projector import LightweightDownsampleProjector
from betakd_stages.models.mobilevlm.prompts import IMAGE_MARK

PUBLISHED_NAMES = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.mlp.mlp.": "multi_modal_projector.mlp.",
    "model.mm_projector.peg.peg.0.": "multi_modal_projector.position.",
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.norm.": "language_model.model.norm.",
    "lm_head.": "language_model.lm_head.",
}
"""What a tensor's name begins with, as published and in vLLM."""


def one_per_image(ids: Sequence[int], image_token_id: int, num_image_tokens: int) -> list[int]:
    """The ids with one placeholder for every `num_image_tokens` neighbouring ones; fewer stay as they are."""
    short: list[int] = []
    for token, run in itertools.groupby(ids):
        length = len(list(run))
        if token == image_token_id and length % num_image_tokens == 0:
            length //= num_image_tokens
        short += [token] * length
    return short


def text_of(ids: Sequence[int], tokenizer: Any) -> str:
    """The text that a Llama tokenizer made these ids of, without start tokens.

    What stands between control tokens is decoded on its own: each stretch has lost the space that was put before it.
    """
    text = ""
    for is_control, run in itertools.groupby(ids, lambda token: token in tokenizer.all_special_ids):
        part = [token for token in run if token != tokenizer.bos_token_id]
        text += "".join(tokenizer.convert_ids_to_tokens(part)) if is_control else tokenizer.decode(part)
    return text


class MobileVlmProcessingInfo(llava.LlavaProcessingInfo):
    """What vLLM asks about images."""

    def get_hf_config(self) -> MobileVlmConfig:
        return self.ctx.get_hf_config(MobileVlmConfig)

    def get_hf_processor(self, **kwargs: object) -> MobileVlmProcessor:
        return self.ctx.get_hf_processor(MobileVlmProcessor, **kwargs)

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return self.get_hf_config().image_seq_length


class MobileVlmDummyInputsBuilder(llava.LlavaDummyInputsBuilder[MobileVlmProcessingInfo]):
    """The largest input there is, for which vLLM keeps memory free."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_MARK * mm_counts.get("image", 0)


class MobileVlmMultiModalProcessor(llava.LlavaMultiModalProcessor):
    """Prompts that come as text or ids, and images as PIL's."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        return self.info.ctx.call_hf_processor(self.info.get_hf_processor().image_processor, hf_data, hf_kwargs)

    def _postprocess_prompt(self, prompt: list[int]) -> list[int]:
        """One placeholder per image, where vLLM puts them all: the ids may have them all already, or stand for a text
        with `<image>`, which is tokenised as the published code does."""
        processor = self.info.get_hf_processor()
        if processor.image_token_id not in prompt:
            prompt, _ = processor.tokenize_with_spans(text_of(prompt, self.info.get_tokenizer()))
        return one_per_image(prompt, processor.image_token_id, processor.num_image_tokens)


@MULTIMODAL_REGISTRY.register_processor(
    MobileVlmMultiModalProcessor, info=MobileVlmProcessingInfo, dummy_inputs=MobileVlmDummyInputsBuilder
)
class MobileVlmForConditionalGeneration(llava.LlavaForConditionalGeneration):
    """LLaVA with another projector, which is small and stands whole, and unquantised, in every worker."""

    _tower_model_names: list[str]
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_regex={re.compile(LEFT_OUT.pattern): None}, orig_to_new_prefix=PUBLISHED_NAMES
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        marked = self._tower_model_names
        with self._mark_tower_model(vllm_config, "image"):
            self.multi_modal_projector = LightweightDownsampleProjector(
                self.config.vision_config.hidden_size, self.config.text_config.hidden_size
            )
        self._tower_model_names = marked  # the projector's name is among them

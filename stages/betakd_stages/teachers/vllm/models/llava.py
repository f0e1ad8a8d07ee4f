"""vLLM's LLaVA, reading checkpoints as today's transformers writes them."""

import re

from vllm.model_executor.models import llava
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

TOWER = re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)")
"""transformers left out one part of the tower's names in 5.19; vLLM wants it."""


@MULTIMODAL_REGISTRY.register_processor(
    llava._build_llava_or_pixtral_hf_processor,
    info=llava._build_llava_or_pixtral_hf_info,
    dummy_inputs=llava.LlavaDummyInputsBuilder,
)
class LlavaForConditionalGeneration(llava.LlavaForConditionalGeneration):
    """The same model; only the names of its weights are mapped further."""

    hf_to_vllm_mapper = llava.LlavaForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_regex={TOWER: "vision_tower.vision_model."}
    )

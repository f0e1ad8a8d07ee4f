"""vLLM's way to models of ours: an entry point that each of its processes calls, perhaps more than once."""


def register() -> None:
    """Make our classes known to vLLM and MobileVLM V2's configuration to transformers."""
    from transformers import AutoConfig

    from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig
    from vllm import ModelRegistry

    AutoConfig.register(MobileVlmConfig.model_type, MobileVlmConfig, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for architecture, place in {
        "BetaKdLlavaForConditionalGeneration": "llava:LlavaForConditionalGeneration",
        "MobileLlamaForCausalLM": "mobilevlm:MobileVlmForConditionalGeneration",
    }.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, f"betakd_stages.teachers.vllm.models.{place}")

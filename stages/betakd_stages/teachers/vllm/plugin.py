"""vLLM's way to models of ours: an entry point that each of its processes calls, perhaps more than once."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

END_WITH_PARENT = "BETAKD_ENGINE_ENDS_WITH_PARENT"
"""Set where our command starts an engine: vLLM's processes would outlive one that is killed, with all their memory."""


def register() -> None:
    """Make our classes known to vLLM and MobileVLM V2's configuration to transformers."""
    if END_WITH_PARENT in os.environ and multiprocessing.parent_process() is not None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig

    AutoConfig.register(MobileVlmConfig.model_type, MobileVlmConfig, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for architecture, place in {
        "BetaKdLlavaForConditionalGeneration": "llava:LlavaForConditionalGeneration",
        "MobileVlmForConditionalGeneration": "mobilevlm:MobileVlmForConditionalGeneration",
    }.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, f"betakd_stages.teachers.vllm.models.{place}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)

"""From samples to what a model eats. The answer mask comes from segments of text, never from counting tokens.

Encoder             what all families share: prompts, mask, identity, batches
    LlavaEncoder    an image is always the same number of tokens (LLaVA, LLaVA-Qwen, MobileVLM V2)
    ProcessorEncoder    the family's own processor says what an image becomes (everything else)
"""

from betakd_stages.encoding.encoder import Encoder
from betakd_stages.encoding.llava import LlavaEncoder
from betakd_stages.encoding.own_processor import ProcessorEncoder
from betakd_stages.encoding.sample import (
    IGNORED,
    EncodedSample,
    model_inputs,
    packed,
    segments,
    supervised_tokens,
)

__all__ = [
    "IGNORED",
    "EncodedSample",
    "Encoder",
    "LlavaEncoder",
    "ProcessorEncoder",
    "model_inputs",
    "packed",
    "segments",
    "supervised_tokens",
]

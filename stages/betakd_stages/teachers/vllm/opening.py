"""From settings to a teacher run by vLLM."""

import logging

from betakd_cache import TokenRule
from betakd_stages.models.loading import load_encoder, model_folder
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.vllm.one_pass import OnePassTeacher
from betakd_stages.teachers.vllm.prompt_log_probabilities import PromptLogProbabilitiesTeacher
from betakd_stages.teachers.vllm.teacher import VllmTeacher
from betakd_stages.teachers.vllm.versions import require_vllm

TEACHERS: dict[str, type[VllmTeacher]] = {
    "vllm": OnePassTeacher,
    "vllm_prompt_logprobs": PromptLogProbabilitiesTeacher,
}
COMPARED = ("llava", "mobilevlm", "qwen2_5_vl", "qwen3_vl")
"""Families, by model_type, whose caches by vLLM and by transformers were found the same."""


def open_vllm_teacher(settings: CacheTeacherSettings, token_rule: TokenRule) -> VllmTeacher:
    """The teacher of these settings. Raises ConfigError for a vLLM that is missing or unknown, and as `load_encoder`
    does, before the engine is started."""
    version = require_vllm(settings.backend)
    encoder = load_encoder(settings.teacher, settings.max_length)
    family = encoder.config.model_type
    if family not in COMPARED:
        logging.getLogger(__name__).warning(
            "a teacher of model type %r in vLLM was never compared with transformers (%s were): write a few samples "
            "with either backend (--limit 32) and compare them (cache diff) before the whole set",
            family,
            ", ".join(COMPARED),
        )
    return TEACHERS[settings.backend](settings, model_folder(settings.teacher), encoder, token_rule, version)

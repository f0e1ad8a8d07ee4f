"""From settings to a teacher run by vLLM."""

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


def open_vllm_teacher(settings: CacheTeacherSettings, token_rule: TokenRule) -> VllmTeacher:
    """The teacher of these settings. Raises ConfigError for a vLLM that is missing or unknown, and as `load_encoder`
    does, before the engine is started."""
    version = require_vllm(settings.backend)
    encoder = load_encoder(settings.teacher, settings.max_length)
    return TEACHERS[settings.backend](settings, model_folder(settings.teacher), encoder, token_rule, version)

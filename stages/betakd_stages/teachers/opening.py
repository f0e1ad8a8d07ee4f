"""From settings to the teacher that they mean."""

from betakd_cache import TokenRule
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.models.placement import Placement
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.base import Teacher
from betakd_stages.teachers.hf import HuggingFaceTeacher


def open_teacher(settings: CacheTeacherSettings) -> Teacher:
    """The teacher of these settings, ready to score. Raises UserError where it cannot be had."""
    if settings.backend != "hf":
        from betakd_stages.teachers.vllm.opening import open_vllm_teacher  # its import takes vLLM

        return open_vllm_teacher(settings, token_rule(settings))
    return open_hf_teacher(settings)


def open_hf_teacher(settings: CacheTeacherSettings, loaded: LoadedModel | None = None) -> HuggingFaceTeacher:
    """The teacher of these settings run by transformers; its model is `loaded` from the settings unless it is given."""
    if loaded is None:
        placement = Placement(settings.attention, settings.device_map, settings.quantisation)
        loaded = load_model(settings.teacher, settings.precision, settings.max_length, placement)
    return HuggingFaceTeacher(loaded, token_rule(settings), settings.features, settings.vision_focus)


def token_rule(settings: CacheTeacherSettings) -> TokenRule:
    """Which entries of a token these settings keep. Raises CacheError for a rule that no cache can have."""
    return TokenRule(
        top_k=settings.top_k,
        top_p=settings.top_p,
        top_p_temperature=settings.top_p_temperature,
        temperatures=settings.temperatures,
        exact=settings.exact,
    )

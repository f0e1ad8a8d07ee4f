"""Which parameters are the language model's, the projector's and the vision tower's, in whatever family."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from betakd_stages.errors import ConfigError

PROJECTORS = frozenset(
    {
        "multi_modal_projector",  # LLaVA, MobileVLM, Gemma 3, InternVL, Mistral 3, PaliGemma, ...
        "image_newline",  # LLaVA-NeXT, LLaVA-OneVision
        "connector",  # SmolVLM, Idefics
        "merger",  # Qwen2-VL and later
        "deepstack_merger_list",  # Qwen3-VL
        "aligner",  # DeepSeek-VL, Janus
    }
)
"""What families call the module between tower and language model."""


def parameters_by_part(model: PreTrainedModel) -> Mapping[str, Mapping[str, nn.Parameter]]:
    """The parameters by name, by part: "language" (head included), "projector", "vision tower"."""
    language = {id(parameter) for module in _language_modules(model) for parameter in module.parameters()}
    parts: dict[str, dict[str, nn.Parameter]] = {"language": {}, "projector": {}, "vision tower": {}}
    for name, parameter in model.named_parameters():
        if id(parameter) in language:
            part = "language"
        else:
            part = "projector" if PROJECTORS.intersection(name.split(".")) else "vision tower"
        parts[part][name] = parameter
    return parts


def freeze(model: PreTrainedModel, *, train_vision_tower: bool, train_projector: bool) -> None:
    """Let gradients reach the language model, and the vision tower and projector only where asked.

    Raises ConfigError where the two are to be treated differently and cannot be told apart.
    """
    parts = parameters_by_part(model)
    if train_vision_tower != train_projector and not (parts["projector"] and parts["vision tower"]):
        raise ConfigError(
            f"where the vision tower of model type {model.config.model_type!r} ends and its projector begins is not "
            "known: set training.train_vision_tower and training.train_projector alike"
        )
    trained = {"language": True, "projector": train_projector, "vision tower": train_vision_tower}
    for part, parameters in parts.items():
        for parameter in parameters.values():
            # Weights of 4 bits are packed as integers, which never train.
            parameter.requires_grad_(trained[part] and parameter.is_floating_point())


def _language_modules(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    return model.get_decoder(), model.get_output_embeddings()

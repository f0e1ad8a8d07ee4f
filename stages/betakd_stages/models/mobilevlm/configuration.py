"""MobileVLM V2's configuration: nested as transformers' LLaVA in memory, flat as published in config.json.

The published file names its vision tower and no sizes of it. A tower other than CLIP ViT-L/14-336 needs a key of ours,
`vision_config`; `prompt_version` is the other one.
"""

import copy
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PretrainedConfig

from betakd_stages.errors import ModelError

CLIP_LARGE_336 = "openai/clip-vit-large-patch14-336"
CLIP_LARGE_336_SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
IMAGE_TOKEN_ID = 0
"""`<unk>`: a tokenizer with byte fallback never makes it of text."""
REQUIRED = {
    "mm_projector_type": "ldpnetv2",
    "vision_tower_type": "clip",
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
"""What this implementation is of; files may leave these keys out, but not say otherwise."""
ASPECT_RATIOS = ("square", "pad")
PROMPT_VERSIONS = ("v1", "plain")


class MobileVlmConfig(LlavaConfig):
    """A LLaVA configuration with two more fields.

    `image_aspect_ratio`: "pad" makes images square with a border, "square" cuts off what is not.
    `prompt_version`: "v1" for conversations, "plain" for captions (stage one of the published recipe).
    """

    model_type = "mobilevlm"

    vision_config: Any = None  # CLIPVisionConfig or its fields
    text_config: Any = None  # LlamaConfig or its fields
    image_token_index: int = IMAGE_TOKEN_ID
    mm_vision_tower: str = CLIP_LARGE_336
    image_aspect_ratio: str = "square"
    prompt_version: str = "v1"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _require_one_of("image_aspect_ratio", self.image_aspect_ratio, ASPECT_RATIOS)
        _require_one_of("prompt_version", self.prompt_version, PROMPT_VERSIONS)
        side = self.vision_config.image_size // self.vision_config.patch_size
        if side % 2:
            raise ModelError(
                f"the vision tower gives {side} x {side} patches: the projector averages 2 x 2 of them and needs an "
                "even number, choose another image_size or patch_size"
            )
        self.image_seq_length = (side // 2) ** 2

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a config.json as published, or of `to_dict()`. Raises ModelError for another design."""
        nested = config_dict if "text_config" in config_dict else nested_config(config_dict)
        return super().from_dict(nested, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """The content of config.json, as published."""
        return published_config(self)


def nested_config(published: dict[str, Any]) -> dict[str, Any]:
    """The fields of `MobileVlmConfig` for a published config.json.

    Raises ModelError for another projector, tower, or way to mark images.
    """
    language = copy.deepcopy(dict(published))  # transformers changes what it is given
    for key, expected in REQUIRED.items():
        if language.pop(key, expected) != expected:
            raise ModelError(
                f"config.json has {key} {published[key]!r}: this loader reads MobileVLM V2, whose {key} is {expected!r}"
            )
    tower = language.pop("mm_vision_tower", "")
    vision = language.pop("vision_config", CLIP_LARGE_336_SIZES if tower == CLIP_LARGE_336 else None)
    if vision is None:
        raise ModelError(
            f"config.json names the vision tower {tower!r}, whose sizes are not known: expected {CLIP_LARGE_336!r}, "
            "or the sizes under vision_config"
        )
    vision_config = CLIPVisionConfig(**vision)
    hidden_size = language.pop("mm_hidden_size", vision_config.hidden_size)
    if hidden_size != vision_config.hidden_size:
        raise ModelError(
            f"config.json has mm_hidden_size {hidden_size}, its vision tower is {vision_config.hidden_size} wide: "
            "make them equal"
        )
    fields = {
        "architectures": ["MobileVlmForConditionalGeneration"],  # the published name is that of text models as well
        "mm_vision_tower": tower,
        "image_aspect_ratio": language.pop("image_aspect_ratio", None) or "square",
        "prompt_version": language.pop("prompt_version", "v1"),
        "vision_feature_layer": language.pop("mm_vision_select_layer", -2),
        "tie_word_embeddings": language.get("tie_word_embeddings", False),
    }
    for key in ("model_type", "architectures", "transformers_version", "auto_map"):
        language.pop(key, None)
    return {**fields, "text_config": LlamaConfig(**language), "vision_config": vision_config}


def published_config(config: MobileVlmConfig) -> dict[str, Any]:
    """The content of the published config.json for a configuration: the inverse of `nested_config`."""
    language = _own_fields(config.text_config)
    rope = language.pop("rope_parameters", None) or {"rope_theta": 10000.0}
    published = {
        **language,
        "architectures": ["MobileLlamaForCausalLM"],
        "model_type": "mobilevlm",
        "rope_theta": rope["rope_theta"],
        "mm_vision_tower": config.mm_vision_tower,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_vision_select_layer": config.vision_feature_layer,
        "image_aspect_ratio": config.image_aspect_ratio,
        "prompt_version": config.prompt_version,
        "torch_dtype": str(config.dtype or config.text_config.dtype or torch.float32).removeprefix("torch."),
        **REQUIRED,
    }
    if rope.get("rope_type", "default") != "default":
        published["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    vision = _own_fields(config.vision_config)
    is_known = vision == _own_fields(CLIPVisionConfig(**CLIP_LARGE_336_SIZES))
    return (
        published if is_known and config.mm_vision_tower == CLIP_LARGE_336 else {**published, "vision_config": vision}
    )


def _own_fields(config: PretrainedConfig) -> dict[str, Any]:
    """What a part's configuration says, without what transformers adds when it saves."""
    added = ("transformers_version", "model_type", "architectures", "dtype")
    return {key: value for key, value in config.to_diff_dict().items() if key not in added}


def _require_one_of(key: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise ModelError(f"config.json has {key} {found!r}: expected {' or '.join(map(repr, allowed))}")

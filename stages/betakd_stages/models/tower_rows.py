"""What a vision tower hands to the projector: taken from one forward pass, and put into another in the tower's place.

A row is all of it for one image: of the layers selected, without the class token where the projector does not get it.
That is one place in models of LLaVA's structure (`llava`, `mobilevlm`), whatever their projector does with it.
I images, P patches, D the width of the selected layers together, B samples, L tokens, H the language model's width.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from betakd_stages.encoding import Encoder, LlavaEncoder, model_inputs
from betakd_stages.errors import ModelError

TOWER_ROWS = "tower_rows"
"""A batch's rows [I, P, D], in the order of its samples with an image, in the place of `pixel_values`."""
MATTERING = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "image_size")
"""What of a tower's configuration changes its numbers and is not seen in the shapes of its weights."""


def require_rows(encoder: Encoder) -> LlavaEncoder:
    """The encoder of a model whose tower's output goes to the projector in one place; raises ModelError for others."""
    if not isinstance(encoder, LlavaEncoder):
        raise ModelError(
            f"vision features of model type {encoder.config.model_type!r} cannot be reused: between its tower and its "
            "language model there is more than one place, or a number of tokens that depends on the image; use a model "
            "of type llava or mobilevlm, or distil without a vision cache"
        )
    return encoder


@torch.inference_mode()
def tower_rows(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """The rows [I, P, D] of images [I, 3, H, W]."""
    base: Any = model.base_model
    captured: list[Tensor] = []
    handle = base.multi_modal_projector.register_forward_pre_hook(
        lambda module, arguments: captured.append(arguments[0])
    )
    try:
        base.get_image_features(pixel_values=pixel_values)
    finally:
        handle.remove()
    return captured[0]


def forward_inputs(model: PreTrainedModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the base model is called with for a batch made by `Encoder.collate`.

    Where the batch has rows, these are the embeddings [B, L, H] that the model would make of the pixels: the projector
    runs here, and the tower does not.
    """
    inputs = model_inputs(batch)
    if TOWER_ROWS not in inputs:
        return inputs
    rows, ids = inputs.pop(TOWER_ROWS), inputs.pop("input_ids")
    base: Any = model.base_model
    projector = base.multi_modal_projector
    visual = projector(rows.to(next(projector.parameters()).dtype))
    embeddings = model.get_input_embeddings()(ids)
    places = (ids == model.config.image_token_id)[..., None]
    return {**inputs, "inputs_embeds": embeddings.masked_scatter(places, visual.to(embeddings.dtype))}


def tower_identity(model: PreTrainedModel) -> dict[str, Any]:
    """What fixes the rows of an image beside its pixels: the tower's weights, and what is selected of it."""
    base: Any = model.base_model
    config, vision = model.config, model.config.vision_config
    return {
        "model_type": vision.model_type,
        **{name: getattr(vision, name) for name in MATTERING},
        "feature_layer": config.vision_feature_layer,
        "feature_select_strategy": config.vision_feature_select_strategy,
        "weights_sha256": _weights_sha256(base.vision_tower),
    }


def _weights_sha256(tower: torch.nn.Module) -> str:
    """The sha256 over names, shapes and values in float32: the same in whatever files and number type they came."""
    digest = hashlib.sha256()
    for name, parameter in sorted(tower.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()

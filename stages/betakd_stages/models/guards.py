"""What this pipeline takes for granted about a model, checked once when it is loaded."""

import torch
from transformers import PreTrainedModel

from betakd_stages.encoding import Encoder
from betakd_stages.errors import ModelError

RELATIVE_TOLERANCE = 1e-3
"""Far above what two ways to the same logits differ by, far below what scaling or capping them does."""


def require_usable(model: PreTrainedModel, encoder: Encoder) -> None:
    """Nothing; raises ModelError for a model that is no decoder, has too few rows, or makes its logits otherwise."""
    family = model.config.model_type
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"a model of type {family!r} has an encoder for text: supported are models that write the answer behind "
            "the prompt"
        )
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        raise ModelError(f"a model of type {family!r} has no head apart from the rest: it is not supported")
    if encoder.vocabulary_size > head.weight.shape[0]:
        raise ModelError(
            f"the tokenizer has {encoder.vocabulary_size} tokens, the model {head.weight.shape[0]} rows: they do not "
            "belong together"
        )
    _require_plain_head(model, encoder.end_token_ids[0])


@torch.inference_mode()
def _require_plain_head(model: PreTrainedModel, token_id: int) -> None:
    """Raises ModelError where logits are not the head's product with the last hidden state, which is what both stages
    make them of: some families scale or cap them."""
    ids = torch.full((1, 1), token_id, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    logits = model(**inputs).logits[0, 0].float().cpu()
    own = model.get_output_embeddings()(model.base_model(**inputs).last_hidden_state)[0, 0].float().cpu()
    if (logits - own).abs().max() > RELATIVE_TOLERANCE * logits.abs().max():
        raise ModelError(
            f"a model of type {model.config.model_type!r} scales or caps its logits: both stages take the head's own, "
            "use a model without that (logit_scale, final_logit_softcapping, logits_scaling)"
        )

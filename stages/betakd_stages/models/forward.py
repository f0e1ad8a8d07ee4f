"""One forward pass up to the last hidden states: the rows that predict supervised tokens, and the pooled features.

Teacher and student share it, so that both sides mean the same by every name. The language model's head is applied
elsewhere, to the answer rows only.
B samples, L tokens, D hidden size, N supervised tokens of the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from betakd_stages.encoding import IGNORED


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """What one pass over a batch gives, ordered by sample and position."""

    hidden: Tensor  # [N, D], the hidden state that predicts each supervised token
    gold_ids: Tensor  # int64 [N]
    sample_index: Tensor  # int64 [N], the sample of each token
    features: dict[str, Tensor]  # pooled [B, D']; rows without the feature are 0
    present: dict[str, Tensor]  # bool [B], whether the sample has the feature


def answer_rows(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> AnswerRows:
    """The answer rows and pooled features of a batch made by `Encoder.collate`.

    `vision` is the mean of the projector's output over an image's tokens, `prompt` the mean last hidden state over the
    tokens before the first answer (image tokens included).
    """
    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in batch}
    # The base model, called without the head: logits over every position would be the largest tensor by far.
    outputs = model.base_model(**inputs, use_cache=False)
    predicts = labels[:, 1:] != IGNORED
    hidden = outputs.last_hidden_state[:, :-1][predicts]
    sample_index = predicts.nonzero()[:, 0]
    first_answer = (labels != IGNORED).int().argmax(dim=1, keepdim=True)
    positions = torch.arange(labels.shape[1], device=labels.device)
    in_prompt = (positions < first_answer) & batch["attention_mask"].bool()
    prompt = _masked_mean(outputs.last_hidden_state, in_prompt)
    features = {"prompt": prompt}
    present = {"prompt": torch.ones(len(labels), dtype=torch.bool, device=labels.device)}
    if outputs.image_hidden_states is not None:
        images = outputs.image_hidden_states.reshape(
            len(batch["pixel_values"]), -1, outputs.image_hidden_states.shape[-1]
        )
        pooled = images.mean(dim=1)
        features["vision"] = pooled.new_zeros(len(labels), pooled.shape[-1]).masked_scatter(
            batch["has_image"][:, None], pooled
        )
        present["vision"] = batch["has_image"]
    return AnswerRows(hidden, labels[:, 1:][predicts], sample_index, features, present)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values [B, L, D] over the positions where mask [B, L] is true, [B, D]."""
    weights = (mask / mask.sum(dim=1, keepdim=True)).to(values.dtype)
    return torch.einsum("bld,bl->bd", values, weights)

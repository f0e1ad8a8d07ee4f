"""One forward pass up to the last hidden states: the rows that predict supervised tokens, and the features asked for.

Teacher and student share it, so that both sides mean the same by every name. The language model's head is applied
elsewhere, to the answer rows only.
B samples, L tokens, D hidden size, N supervised tokens of the batch, P places of a feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from betakd_cache import FeatureLayout
from betakd_stages.encoding import IGNORED
from betakd_stages.features import arrange


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """What one pass over a batch gives, ordered by sample and position."""

    hidden: Tensor  # [N, D], the hidden state that predicts each supervised token
    gold_ids: Tensor  # int64 [N]
    sample_index: Tensor  # int64 [N], the sample of each token
    features: dict[str, Tensor]  # [B, D], or [B, P, D] at P places; rows without the feature are 0
    present: dict[str, Tensor]  # bool [B], whether the sample has the feature


def answer_rows(
    model: PreTrainedModel, batch: Mapping[str, Tensor], layouts: Mapping[str, FeatureLayout] | None = None
) -> AnswerRows:
    """The answer rows of a batch made by `Encoder.collate`, and the features in `layouts` by name.

    `vision` is the projector's output, arranged as its layout says; `prompt` the mean last hidden state over the
    tokens before the first answer (image tokens included).
    """
    labels, layouts = batch["labels"], layouts or {}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in batch}
    # The base model, called without the head: logits over every position would be the largest tensor by far.
    outputs = model.base_model(**inputs, use_cache=False)
    states = outputs.last_hidden_state
    predicts = labels[:, 1:] != IGNORED
    features, present = {}, {}
    if "prompt" in layouts:
        features["prompt"] = _masked_mean(states, prompt_positions(batch))
        present["prompt"] = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    if "vision" in layouts:
        features["vision"] = _vision(outputs.image_hidden_states, batch["has_image"], layouts["vision"], states)
        present["vision"] = batch["has_image"]
    return AnswerRows(
        hidden=states[:, :-1][predicts],
        gold_ids=labels[:, 1:][predicts],
        sample_index=predicts.nonzero()[:, 0],
        features=features,
        present=present,
    )


def prompt_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """The positions bool `[B, L]` of the tokens before each sample's first answer."""
    labels = batch["labels"]
    first_answer = (labels != IGNORED).int().argmax(dim=1, keepdim=True)
    positions = torch.arange(labels.shape[1], device=labels.device)
    return (positions < first_answer) & batch["attention_mask"].bool()


def _vision(images: Tensor | None, has_image: Tensor, layout: FeatureLayout, states: Tensor) -> Tensor:
    """The feature of every sample, from the visual tokens of those with an image, in order; None if none has one."""
    if images is None:
        zeros = 0 * states[:, 0]  # of the student's graph, as a feature must be in training
        return zeros if layout.is_pooled else zeros[:, None].expand(-1, layout.num_places, -1)
    arranged = arrange(images.reshape(int(has_image.sum()), -1, images.shape[-1]), layout.name)
    rows = arranged.new_zeros(len(has_image), *arranged.shape[1:])
    return rows.masked_scatter(has_image.view(-1, *[1] * (arranged.ndim - 1)), arranged)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values [B, L, D] over the positions where mask [B, L] is true, [B, D]."""
    weights = (mask / mask.sum(dim=1, keepdim=True)).to(values.dtype)
    return torch.einsum("bld,bl->bd", values, weights)

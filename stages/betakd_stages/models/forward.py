"""One forward pass up to the last hidden states: the rows that predict supervised tokens, and the features asked for.

Teacher and student share it, so that both sides mean the same by every name. The language model's head is applied
elsewhere, to the answer rows only.
B samples, in as many rows or packed into one, L tokens, D hidden size, N supervised tokens of the batch, P places of a
feature.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from betakd_cache import FeatureLayout
from betakd_stages.encoding import IGNORED, segments
from betakd_stages.errors import ModelError
from betakd_stages.features import arrange
from betakd_stages.models.tower_rows import forward_inputs


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
    of_sample, num_samples = segments(batch), len(batch["has_image"])
    with _embeddings(model) as embeddings:
        # The base model, called without the head: logits over every position would be the largest tensor by far.
        states = model.base_model(**forward_inputs(model, batch), use_cache=False).last_hidden_state
    states = states.to(labels.device)  # a model over several GPUs leaves them on the last
    predicts = labels[:, 1:] != IGNORED
    features, present = {}, {}
    if "prompt" in layouts:
        features["prompt"] = _means(states, prompt_positions(batch), of_sample, num_samples)
        present["prompt"] = torch.ones(num_samples, dtype=torch.bool, device=labels.device)
    if "vision" in layouts:
        if not embeddings or embeddings[0] is None:
            raise ModelError(
                f"a model of type {model.config.model_type!r} gives its language model no visual tokens: leave the "
                "feature vision out (--features prompt)"
            )
        visual = (batch["input_ids"] == model.config.image_token_id) & _valid(batch)
        counts = torch.bincount(of_sample[visual], minlength=num_samples)
        features["vision"] = _vision(embeddings[0].to(labels.device), visual, counts, layouts["vision"])
        present["vision"] = batch["has_image"]
    return AnswerRows(
        hidden=states[:, :-1][predicts],
        gold_ids=labels[:, 1:][predicts],
        sample_index=of_sample[:, 1:][predicts],
        features=features,
        present=present,
    )


def prompt_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """The positions bool, of the shape of input_ids, of the tokens before each sample's first answer."""
    supervised = batch["labels"] != IGNORED
    of_sample = segments(batch)
    per_sample = torch.bincount(of_sample[supervised], minlength=len(batch["has_image"]))
    before = (per_sample.cumsum(0) - per_sample)[of_sample]  # of earlier samples, in the order of tokens
    so_far = supervised.flatten().cumsum(0).view(supervised.shape) - before
    return (so_far == 0) & _valid(batch)


def _valid(batch: Mapping[str, Tensor]) -> Tensor:
    """Where a token is no padding, bool."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


@contextlib.contextmanager
def _embeddings(model: PreTrainedModel) -> Iterator[list[Tensor | None]]:
    """A list that gets what enters the language model, `[B, L, D]`: the projector's output where visual tokens are.

    Taken there, it means the same in every family, whatever a model hands out beside its last hidden state.
    """
    captured: list[Tensor | None] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, named: captured.append(named.get("inputs_embeds")), with_kwargs=True
    )
    try:
        yield captured
    finally:
        handle.remove()


def _vision(embeddings: Tensor, visual: Tensor, counts: Tensor, layout: FeatureLayout) -> Tensor:
    """The feature of every sample, from its visual tokens, `counts` `[B]` of them: the embeddings at the positions."""
    if not counts.any():
        zeros = 0 * embeddings[0, :1].expand(len(counts), -1)  # of the student's graph, as a feature must be
        return zeros if layout.is_pooled else zeros[:, None].expand(-1, layout.num_places, -1)
    has_image = counts > 0
    sizes = counts[has_image].tolist()
    if len(set(sizes)) == 1:
        arranged = arrange(embeddings[visual].unflatten(0, (len(sizes), sizes[0])), layout.name)
    else:
        arranged = torch.cat([arrange(tokens[None], layout.name) for tokens in embeddings[visual].split(sizes)])
    rows = arranged.new_zeros(len(counts), *arranged.shape[1:])
    return rows.masked_scatter(has_image.view(-1, *[1] * (arranged.ndim - 1)), arranged)


def _means(values: Tensor, mask: Tensor, of_sample: Tensor, num_samples: int) -> Tensor:
    """The mean of every sample's values `[..., D]` over the positions where the mask is true, `[B, D]`."""
    if len(values) == num_samples:
        weights = (mask / mask.sum(dim=1, keepdim=True)).to(values.dtype)
        return torch.einsum("bld,bl->bd", values, weights)
    own = (of_sample == torch.arange(num_samples, device=mask.device)[:, None]) & mask  # one row holds all samples
    return (own / own.sum(dim=1, keepdim=True)).to(values.dtype) @ values[0]

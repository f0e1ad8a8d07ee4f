"""Continuing prompts token by token: what evaluation and a teacher that writes answers share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from betakd_stages.encoding import EncodedSample, model_inputs
from betakd_stages.models.loading import LoadedModel

GREEDY: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
"""The largest logit, whatever a model's generation_config.json says; what is behind the penalty has no effect."""


@torch.inference_mode()
def continue_prompts(
    loaded: LoadedModel,
    prompts: Sequence[EncodedSample],
    *,
    max_new_tokens: int,
    forbidden: Sequence[int] = (),
    processors: Sequence[LogitsProcessor] = (),
    output_scores: bool = False,
) -> tuple[Tensor, Any]:
    """The new ids int64 [B, T] behind the prompts, which are padded on the left, and all that transformers returns.

    Always the id with the largest number is taken, of what the `processors` make of the logits. Ids in `forbidden` and
    rows of the head behind the tokenizer's last token, which nobody trains, are never taken. Behind an end token stands
    padding, which may be that token again.
    """
    model, encoder = loaded.model.eval(), loaded.encoder
    padding_rows = range(encoder.vocabulary_size, model.get_output_embeddings().weight.shape[0])
    batch = encoder.collate(prompts, padding_side="left")
    inputs = {name: value.to(model.device) for name, value in model_inputs(batch).items()}
    output = model.generate(
        **inputs,
        **GREEDY,
        max_new_tokens=max_new_tokens,
        output_scores=output_scores,
        return_dict_in_generate=True,
        pad_token_id=encoder.pad_token_id,
        eos_token_id=encoder.end_token_ids,
        suppress_tokens=[*forbidden, *padding_rows] or None,
        logits_processor=LogitsProcessorList(processors),
    )
    return output.sequences[:, inputs["input_ids"].shape[1] :], output

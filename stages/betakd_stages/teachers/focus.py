"""Where a teacher looks: the visual tokens that its first layer attends to most from the question."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from betakd_stages.models.forward import prompt_positions


@contextlib.contextmanager
def first_layer_attention(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """A list that gets the weights `[B, heads, L, L]` of the first decoder layer at every forward pass.

    They come from a hook on that layer's attention alone, which hands them out if the model runs with eager attention;
    asking the model for them would keep those of every layer.
    """
    captured: list[Tensor] = []
    attention = model.get_decoder().layers[0].self_attn
    handle = attention.register_forward_hook(lambda module, inputs, outputs: captured.append(outputs[1]))
    try:
        yield captured
    finally:
        handle.remove()


def visual_focus(attention: Tensor, batch: Mapping[str, Tensor], image_token_id: int, num_focus: int) -> Tensor:
    """The `num_focus` visual tokens `[B', J]`, int64, that get the most attention, first the most; equal ones in order.

    The attention `[B, heads, L, L]` to each visual token is averaged over the heads and over the text positions of the
    prompt, which are those before the first answer that are no visual tokens. B' are the samples with an image.
    Source: Align-KD, text-to-vision attention of the first layer; it takes 16 tokens.
    """
    visual = (batch["input_ids"] == image_token_id) & batch["attention_mask"].bool()
    text = prompt_positions(batch) & ~visual
    weights = text / text.sum(dim=1, keepdim=True)
    received = torch.einsum("bhij,bi->bj", attention.float(), weights) / attention.shape[1]
    with_image = batch["has_image"]
    by_token = received[with_image][visual[with_image]].view(int(with_image.sum()), -1)
    return by_token.argsort(dim=1, descending=True, stable=True)[:, :num_focus]

"""Memory against time: layers that forget their activations and compute them again in the backward pass."""

from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel, *, vision_tower: bool) -> None:
    """Let the layers of the language model, and of the vision tower too where it trains, keep nothing but their input.

    Nothing changes in evaluation. Losses and gradients stay what they were: dropout draws the same numbers again.
    """
    part = model if vision_tower else model.get_decoder()
    # Before transformers 5.23 by another name.
    enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # It also asks for gradients at frozen embeddings, which the reentrant kind needs and which cost memory.
    part.disable_input_require_grads()

"""Linear layers quantised by bitsandbytes: what they need beside transformers, and from 4 bits the way back."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def tame_bitsandbytes(model: PreTrainedModel) -> None:
    """Keep bitsandbytes (0.50) from two habits; nothing happens to a model that is not quantised.

    On CPUs with AVX512-BF16 it packs 4-bit weights anew at the first forward pass in evaluation: from then on they
    compute in bfloat16 whatever was asked for, with rounded scales, and give their input no gradient. And of every
    8-bit product it logs that fp16 is what it computes in.
    """
    for layer in _layers(model).values():
        layer.support_avx512bf16_for_cpu = False
    if getattr(model, "is_loaded_in_8bit", False):
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def dequantise(model: PreTrainedModel) -> bool:
    """Whether the model had 4-bit weights. They become the plain numbers that they mean, and the model moves to the
    CPU: a GPU may hold it in 4 bits alone."""
    layers = _layers(model)
    if not layers:
        return False
    from bitsandbytes.functional import dequantize_4bit

    for name, layer in layers.items():
        with torch.device("meta"):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).cpu()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:  # which the forward pass has left in the type it computes in
            linear.bias = nn.Parameter(layer.bias.detach().to(weight), requires_grad=False)
        model.set_submodule(name, linear)
    nn.Module.to(model, "cpu")
    quantizer: Any = model.hf_quantizer
    quantizer.remove_quantization_config(model)
    del model.is_loaded_in_4bit
    return True


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    """The 4-bit layers by name; those inside of adapted ones are called base_layer."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return {}
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}

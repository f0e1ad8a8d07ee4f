"""Low-rank adapters (LoRA, DoRA, QLoRA) in a student's language model: added in place, saved apart, merged at the end.

In place means that the model stays the same object of the same class: the forward pass, the head and the names of its
parts are found as ever. peft is imported here only, and only where adapters are asked for.
"""

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from betakd_stages.errors import ConfigError
from betakd_stages.models.parts import parameters_by_part
from betakd_stages.models.placement import Placement
from betakd_stages.models.quantised import dequantise
from betakd_stages.settings.adapters import AdapterSettings

ADAPTER = "default"
"""peft's name of the only adapter there is."""
PREFIX = "base_model.model."
"""What peft puts before a parameter's name in a file."""


def base_placement(settings: AdapterSettings, precision: str) -> Placement:
    """How to load the student that gets these adapters: for QLoRA (Dettmers et al.) with a language model in NF4, which
    computes in the precision of the training.

    Raises ConfigError where QLoRA is asked for and bitsandbytes is missing.
    """
    if settings.kind != "qlora":
        return Placement()
    if not importlib.util.find_spec("bitsandbytes"):
        raise ConfigError(
            "adapter qlora needs the package bitsandbytes: install it (pip install 'betakd-pipe[qlora]'), or use "
            "adapter lora"
        )
    return Placement(
        quantisation="int4",
        double_quantisation=settings.double_quantisation,
        language_model_only=True,
        compute=precision,
    )


def add_adapter(model: PreTrainedModel, settings: AdapterSettings) -> None:
    """Put adapters into linear layers of the language model: they train, and its own weights, head included, do not.

    Projector and vision tower get no adapter and train as before. Nothing happens where settings.kind is none.
    An adapted layer gives W x + alpha / rank * B A x; B is 0 at first (Hu et al., LoRA, eq. 3).
    Raises ConfigError where peft is missing, or a target is no linear layer of the language model.
    """
    if settings.kind == "none":
        return
    if not importlib.util.find_spec("peft"):
        raise ConfigError(
            f"adapter {settings.kind} needs the package peft: install it (pip install 'betakd-pipe[lora]'), or leave "
            "adapter out to train the whole language model"
        )
    from peft import LoraConfig, inject_adapter_in_model

    names = _target_names(model, settings.targets)
    parts = parameters_by_part(model)
    beside = [
        parameter
        for part in ("projector", "vision tower")
        for parameter in parts[part].values()
        if parameter.requires_grad
    ]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.kind == "dora",
        target_modules=names,
    )
    inject_adapter_in_model(config, model, ADAPTER)
    assert set(_adapted_layers(model)) == set(names)
    for parameter in model.parameters():
        if parameter.requires_grad:  # beside 4-bit weights peft makes adapters of the type these compute in
            parameter.data = parameter.data.float()
    for parameter in beside:  # peft freezes all but its own
        parameter.requires_grad_(True)


def save_adapter(model: PreTrainedModel, base: Path, folder: Path) -> None:
    """Write the adapter of a model whose base is the model folder `base`, as `PeftModel.from_pretrained` reads it."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    folder.mkdir(parents=True)
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def merge_adapter(model: PreTrainedModel) -> None:
    """Add every adapter's product to the weight beside it, and leave the plain model.

    Weights of 4 bits are dequantised for it: the adapters were trained beside what they mean, not beside what they were
    rounded from. Raises ValueError where a merged weight is not finite.
    """
    was_quantised = dequantise(model)
    for name, layer in _adapted_layers(model).items():
        linear = layer.get_base_layer()
        if was_quantised:  # peft would round the sum to 4 bits again
            linear.weight = nn.Parameter(_merged(linear.weight, layer.get_delta_weight(ADAPTER), name))
        else:
            layer.merge(safe_merge=True)
        model.set_submodule(name, linear)
    del model.peft_config


def _merged(weight: Tensor, product: Tensor, name: str) -> Tensor:
    merged = weight.detach() + product.detach().to(weight)
    if not bool(torch.isfinite(merged).all()):
        raise ValueError(f"the merged weight of {name} is not finite")
    return merged


def _adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _target_names(model: PreTrainedModel, targets: str | Sequence[str]) -> list[str]:
    """The full names of the language model's linear layers that are meant; the head is none of them."""
    linear = {id(module) for module in model.get_decoder().modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in model.named_modules() if id(module) in linear]
    if targets == "all-linear":
        return names
    chosen = {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in targets}
    for target, found in chosen.items():
        if not found:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            raise ConfigError(
                f"adapter.targets has {target!r}, which is no linear layer of the language model: it has {known}"
            )
    return list(dict.fromkeys(name for found in chosen.values() for name in found))

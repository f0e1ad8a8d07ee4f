"""Checkpoints in MobileVLM V2's published layout, written by hand: they owe nothing to the code under test."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

VECTORS = Path(__file__).parents[2] / "vectors"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and depths: of the language model, then of the vision tower."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    vision_hidden: int = 1024
    vision_intermediate: int = 4096
    vision_layers: int = 24
    vision_heads: int = 16
    image: int = 336
    patch: int = 14
    norm_epsilon: float = 1e-6


MOBILEVLM_1_7B = Sizes(2048, 5632, 24, 16, 32000, 2048)
MOBILEVLM_7B = Sizes(4096, 11008, 32, 32, 32000, 4096, norm_epsilon=1e-5)
TINY_TOWER: dict[str, Any] = {
    "vision_hidden": 16,
    "vision_intermediate": 24,
    "vision_layers": 3,
    "vision_heads": 2,
    "image": 24,
    "patch": 6,
}
TINY_TEACHER = Sizes(32, 48, 2, 2, 432, 512, **TINY_TOWER)
TINY_STUDENT = Sizes(16, 24, 1, 1, 432, 512, **TINY_TOWER)


def tensor_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The published name and shape of every tensor."""
    return {**language_shapes(sizes), **vision_shapes(sizes), **projector_shapes(sizes)}


def language_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    width, inner = sizes.hidden, sizes.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes.vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (sizes.vocabulary, width),
    }
    for number in range(sizes.layers):
        layer = f"model.layers.{number}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes


def vision_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    width, inner = sizes.vision_hidden, sizes.vision_intermediate
    tower = "model.vision_tower.vision_tower.vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}embeddings.class_embedding": (width,),
        f"{tower}embeddings.patch_embedding.weight": (width, 3, sizes.patch, sizes.patch),
        f"{tower}embeddings.position_embedding.weight": ((sizes.image // sizes.patch) ** 2 + 1, width),
    }
    both = {"weight": (width,), "bias": (width,)}
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{tower}{norm}.{kind}": shape for kind, shape in both.items()}
    for number in range(sizes.vision_layers):
        layer = f"{tower}encoder.layers.{number}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (width, width), f"{layer}self_attn.{name}.bias": (width,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.{kind}": shape for kind, shape in both.items()}
        shapes |= {f"{layer}mlp.fc1.weight": (inner, width), f"{layer}mlp.fc1.bias": (inner,)}
        shapes |= {f"{layer}mlp.fc2.weight": (width, inner), f"{layer}mlp.fc2.bias": (width,)}
    return shapes


def projector_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    projector = "model.mm_projector."
    return {
        f"{projector}mlp.mlp.0.weight": (sizes.hidden, sizes.vision_hidden),
        f"{projector}mlp.mlp.0.bias": (sizes.hidden,),
        f"{projector}mlp.mlp.2.weight": (sizes.hidden, sizes.hidden),
        f"{projector}mlp.mlp.2.bias": (sizes.hidden,),
        f"{projector}peg.peg.0.weight": (sizes.hidden, 1, 3, 3),
        f"{projector}peg.peg.0.bias": (sizes.hidden,),
    }


def published_config(sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """The content of config.json, with the sizes of a tower that is not CLIP-L/14-336."""
    config: dict[str, Any] = {
        "architectures": ["MobileLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.context,
        "mm_hidden_size": sizes.vision_hidden,
        "mm_projector_type": "ldpnetv2",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": "mobilevlm",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": sizes.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.33.1",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vision_tower_type": "clip",
        "vocab_size": sizes.vocabulary,
    }
    if sizes.vision_hidden != 1024:
        config |= {"mm_vision_tower": "tiny-clip", "vision_config": vision_config(sizes)}
    return {**config, **changes}


def vision_config(sizes: Sizes) -> dict[str, int]:
    return {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_heads,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
    }


def random_tensors(sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Weights with deviation 1/sqrt(fan_in), norms near 1, so that outputs depend on every one of them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(sizes).items():
        values = torch.randn(shape, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
        tensors[name] = 1 + 0.1 * values if is_norm else values / math.sqrt(fan_in)
    return tensors


def write_published(
    folder: Path,
    sizes: Sizes,
    *,
    seed: int = 0,
    form: str = "safetensors",
    num_shards: int = 1,
    tensors: dict[str, Tensor] | None = None,
    legacy: bool | None = True,
    **config: Any,
) -> Path:
    """`folder`, holding config.json, the tokenizer and weights (`form` safetensors or bin) as published."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(published_config(sizes, **config)), encoding="utf-8")
    shutil.copy(VECTORS / "llama_style.model", folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings |= {} if legacy is None else {"legacy": legacy}  # type: ignore[dict-item]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    write_weights(folder, random_tensors(sizes, seed) if tensors is None else tensors, form, num_shards)
    return folder


def write_weights(folder: Path, tensors: dict[str, Tensor], form: str, num_shards: int) -> None:
    """One file, or several and the index that says which tensor is where."""
    stem, suffix = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[form]
    parts = [dict(list(tensors.items())[start::num_shards]) for start in range(num_shards)]
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}.{suffix}" if num_shards == 1 else f"{stem}-{number:05}-of-{num_shards:05}.{suffix}"
        weight_map |= dict.fromkeys(part, name)
        if form == "safetensors":
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)
    if num_shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")

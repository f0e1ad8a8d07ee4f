"""Where a model's weights lie and how they run: devices, attention kernels, quantisation."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from betakd_stages.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Placement:
    """How to run a model, by the words of `CacheTeacherSettings`; by default whole on one device, as it was saved."""

    attention: str = "auto"
    device_map: str = "single"
    quantisation: str = "none"

    def arguments(self, precision: str) -> dict[str, Any]:
        """What `from_pretrained` needs for this. Raises ConfigError for what cannot run here, naming what it lacks."""
        arguments: dict[str, Any] = {}
        if self.attention != "auto":
            _require_attention(self.attention, precision)
            arguments["attn_implementation"] = self.attention
        if self.quantisation != "none":
            _require_bitsandbytes(self.quantisation)
            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantisation == "int8",
                load_in_4bit=self.quantisation == "int4",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            )
            arguments["device_map"] = {"": torch.cuda.current_device()}
        if self.device_map == "auto":
            arguments["device_map"] = "auto"
        return arguments


def place(model: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
    """Move a model to the GPU, where there is one; one that was loaded with a device map lies where it belongs."""
    if "device_map" not in arguments:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.nn.Module.to(model, device)


def _require_attention(attention: str, precision: str) -> None:
    if attention != "flash_attention_2":
        return
    missing = [
        *([] if torch.cuda.is_available() else ["a GPU"]),
        *([] if importlib.util.find_spec("flash_attn") else ["the package flash-attn (pip install flash-attn)"]),
        *([] if precision == "bf16" else [f"precision bf16 (found {precision})"]),
    ]
    if missing:
        raise ConfigError(f"attention flash_attention_2 needs {', '.join(missing)}: add that, or choose attention sdpa")


def _require_bitsandbytes(quantisation: str) -> None:
    missing = [
        *([] if torch.cuda.is_available() else ["a GPU"]),
        *([] if importlib.util.find_spec("bitsandbytes") else ["the package bitsandbytes (pip install bitsandbytes)"]),
    ]
    if missing:
        raise ConfigError(
            f"quantisation {quantisation} needs {', '.join(missing)}: add that, or leave quantisation out (bf16 halves "
            "the weights anywhere, device_map auto spreads them)"
        )

"""Taking a student out of its run folder: a model folder for others, in the number type and the file sizes they want.

A model leaves in the layout of its family: that of transformers, or for MobileVLM V2 the published one, which is also
how a run saves it. What is read from an export is bit for bit what was read from the run, in the same number type.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from betakd_stages.errors import ConfigError, ModelError
from betakd_stages.models.loading import load_encoder, read_model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = {"mobilevlm": "mobilevlm"}
"""By `model_type`; all others are transformers'."""
TRANSFORMERS = "transformers"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_FILE = "50GB"
"""As in transformers; the Hub takes no larger ones."""
SHARD_SIZE = re.compile(r"\d+(\.\d+)?(KB|MB|GB|TB)")


def export_model(
    folder: Path, out: Path, *, layout: str | None = None, dtype: str | None = None, max_shard_size: str | None = None
) -> None:
    """Write the model, tokenizer and processor of a model folder to the folder `out`.

    The number type is the stored one unless `dtype` names another; weights are safetensors, in files of at most
    `max_shard_size`, such as 5GB. `layout` is for those who want to be sure: each family has one.
    Raises ConfigError for another layout, number type or size than there are, ModelError where the model cannot be
    loaded or its weights do not fit the number type.
    """
    number_type = _number_type(dtype)
    if max_shard_size is not None and not SHARD_SIZE.fullmatch(max_shard_size):
        raise ConfigError(f"--max-shard-size {max_shard_size}: expected a number and its unit, such as 5GB or 500MB")
    encoder = load_encoder(folder)
    _require_layout(folder, encoder.config.model_type, layout)
    model = read_model(folder, encoder, number_type or "auto")
    _require_finite(folder, model.state_dict(), dtype)
    model.save_pretrained(out, max_shard_size=max_shard_size or LARGEST_FILE)
    encoder.save(out)


def export_adapter(folder: Path, out: Path, *, base: str | None = None, dtype: str | None = None) -> None:
    """Write the adapter of the run folder `folder` to the folder `out`, as peft reads it.

    `base` is what others call the student it was made for; the run's own name for it where that is None.
    Raises ConfigError where the run has none, ModelError where its weights do not fit the number type.
    """
    number_type = _number_type(dtype)
    adapter = folder / "adapter"
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"{folder} has no adapter/, as finished runs have that were made with --adapter lora, dora or qlora: "
            "leave --adapter out to export the model"
        )
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base or config["base_model_name_or_path"]
    (out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if number_type is None:
        shutil.copyfile(adapter / ADAPTER_WEIGHTS, out / ADAPTER_WEIGHTS)
        return
    tensors = {name: value.to(number_type) for name, value in load_file(adapter / ADAPTER_WEIGHTS).items()}
    _require_finite(adapter, tensors, dtype)
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _number_type(dtype: str | None) -> torch.dtype | None:
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: choose {', '.join(DTYPES)}, or leave it out to keep what is stored")
    return None if dtype is None else DTYPES[dtype]


def _require_layout(folder: Path, family: str, layout: str | None) -> None:
    own = LAYOUTS.get(family, TRANSFORMERS)
    if layout not in (None, own):
        raise ConfigError(
            f"--format {layout}: {folder} is of model type {family!r}, whose layout is {own}: leave --format out"
        )


def _require_finite(folder: Path, tensors: dict[str, Tensor], dtype: str | None) -> None:
    """Raises ModelError for weights that are not finite, as those beyond 65,504 are not in fp16."""
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        remedy = "export it in bf16 (--dtype bf16)" if dtype == "fp16" else "train it again"
        raise ModelError(
            f"{len(bad)} tensors of {folder}, such as {bad[0]}, are not finite as {dtype or 'stored'}: {remedy}"
        )

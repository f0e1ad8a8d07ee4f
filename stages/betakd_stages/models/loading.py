"""Loading a model folder: the model, and the encoder that turns samples into what it eats."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedModel

from betakd_stages.encoding import Encoder, LlavaEncoder
from betakd_stages.errors import ModelError, UserError
from betakd_stages.models.mobilevlm.encoder import MobileVlmEncoder
from betakd_stages.models.mobilevlm.model import MobileVlmForConditionalGeneration

ENCODERS: dict[str, type[Encoder]] = {"llava": LlavaEncoder, "mobilevlm": MobileVlmEncoder}
MODELS: dict[str, Any] = {"llava": AutoModelForImageTextToText, "mobilevlm": MobileVlmForConditionalGeneration}
"""Both by the `model_type` of config.json."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, its encoder, and the folder they came from."""

    model: PreTrainedModel
    encoder: Encoder
    folder: Path


def model_folder(path: str | Path) -> Path:
    """The folder holding config.json: `path` itself, or `path`/model where `path` is a run folder.

    Raises ModelError where there is none, naming the reason.
    """
    folder = Path(path)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.is_dir():
        raise ModelError(
            f"model folder {path} does not exist: give a folder written by save_pretrained, or a run folder"
        )
    if (folder / "config.yaml").is_file():
        raise ModelError(f"run folder {path} has no model/: the run is not finished, run the same command again first")
    raise ModelError(f"{path} holds no config.json: expected a folder written by save_pretrained, or a run folder")


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of a model folder, without reading the weights. Raises ModelError for an unsupported family."""
    folder = model_folder(path)
    family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if family not in ENCODERS:
        raise ModelError(f"{folder} is of model type {family!r}: supported are {', '.join(ENCODERS)}")
    try:
        return ENCODERS[family].load(folder)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} lacks a tokenizer or an image processor ({_first_line(error)})") from None


def load_model(path: str | Path, precision: str = "fp32") -> LoadedModel:
    """The model, on the GPU where there is one, and encoder of a model folder or run folder.

    Raises ModelError where they cannot be loaded.
    """
    encoder = load_encoder(path)
    folder = model_folder(path)
    try:
        model, report = MODELS[encoder.config.model_type].from_pretrained(
            folder,
            local_files_only=True,
            dtype=PRECISIONS[precision],
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are reported below, in one line
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded ({_first_line(error)})") from None
    _require_complete(folder, report)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    return LoadedModel(model, encoder, folder)


def _require_complete(folder: Path, report: Mapping[str, Any]) -> None:
    """Raises ModelError where weights were missing, too many or of another shape: transformers only warns."""
    problems = {
        "lacks": sorted(report["missing_keys"]),
        "holds besides the model's": sorted(report["unexpected_keys"]),
        "has of another shape": sorted(name for name, *_ in report["mismatched_keys"]),
    }
    for verb, names in problems.items():
        if names:
            raise ModelError(
                f"the checkpoint in {folder} {verb} {len(names)} tensors, such as {names[0]}: "
                "weights and config.json do not belong together"
            )


def weights_sha256(folder: Path) -> str:
    """The sha256 over the names and contents of a model folder's weight files, in alphabetical order."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

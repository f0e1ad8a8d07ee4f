"""Loading a model folder: the model, and the encoder that turns samples into what it eats."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from betakd_stages.encoding import Encoder, LlavaEncoder, ProcessorEncoder
from betakd_stages.errors import ConfigError, ModelError, UserError
from betakd_stages.models.guards import require_usable
from betakd_stages.models.mobilevlm.encoder import MobileVlmEncoder
from betakd_stages.models.mobilevlm.model import MobileVlmForConditionalGeneration
from betakd_stages.models.placement import Placement, place
from betakd_stages.models.quantised import tame_bitsandbytes

ENCODERS: dict[str, type[Encoder]] = {"llava": LlavaEncoder, "mobilevlm": MobileVlmEncoder}
MODELS: dict[str, Any] = {"mobilevlm": MobileVlmForConditionalGeneration}
"""Both by the `model_type` of config.json; every other family of transformers is read through its own processor."""
LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError, StrictDataclassError)
"""What reading a damaged or foreign model folder raises."""
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


def load_encoder(path: str | Path, max_length: int | None = None) -> Encoder:
    """The encoder of a model folder, without reading the weights; samples have at most `max_length` tokens.

    Raises ModelError for an unsupported family, ConfigError for more tokens than the model's context.
    """
    folder = model_folder(path)
    family = _family(folder / "config.json")
    if family not in ENCODERS and family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(
            f"{folder} is of model type {family!r}: supported are {', '.join(ENCODERS)} and the image-text models of "
            "transformers (AutoModelForImageTextToText)"
        )
    try:
        encoder = ENCODERS.get(family, ProcessorEncoder).load(folder)
    except UserError:
        raise
    except StrictDataclassError as error:
        raise ModelError(f"config.json of {folder} is not valid ({first_line(error)}): copy it again") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} lacks a tokenizer or an image processor ({first_line(error)})") from None
    if max_length is not None:
        context = encoder.max_length
        if context is not None and max_length > context:
            raise ConfigError(f"max_length is {max_length}, the context of {folder} is {context} tokens: lower it")
        encoder.max_length = max_length
    return encoder


def _family(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ModelError(f"{path} is not valid JSON ({first_line(error)}): copy it again") from None
    return content.get("model_type") if isinstance(content, dict) else None


def load_model(
    path: str | Path, precision: str = "fp32", max_length: int | None = None, placement: Placement | None = None
) -> LoadedModel:
    """The model, on the GPU where there is one or as `placement` says, and encoder of a model folder or run folder.

    Raises ModelError where they cannot be loaded or do not belong together, ConfigError for a placement that cannot be
    had here, and as `load_encoder` does.
    """
    placement = placement or Placement()
    encoder = load_encoder(path, max_length)
    left_whole = _outside_language_model(encoder.config) if placement.language_model_only else None
    placed = placement.arguments(precision, left_whole)
    folder = model_folder(path)
    model = read_model(folder, encoder, PRECISIONS[precision], **placed)
    place(model, placed)
    tame_bitsandbytes(model)
    require_usable(model, encoder)
    return LoadedModel(model, encoder, folder)


def read_model(folder: Path, encoder: Encoder, dtype: torch.dtype | str, **arguments: Any) -> PreTrainedModel:
    """The model of a model folder in a number type ("auto": as it is stored), where `from_pretrained` puts it.

    Raises ModelError where it cannot be loaded or lacks something.
    """
    try:
        model, report = MODELS.get(encoder.config.model_type, AutoModelForImageTextToText).from_pretrained(
            folder,
            local_files_only=True,
            dtype=dtype,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are reported below, in one line
            output_loading_info=True,
            **arguments,
        )
    except LOADING_ERRORS as error:
        raise ModelError(f"the model in {folder} cannot be loaded ({first_line(error)})") from None
    require_complete(folder, report)
    read: PreTrainedModel = model
    return read


def _outside_language_model(config: Any) -> list[str]:
    """The full names of the linear layers of tower, projector and head."""
    with torch.device("meta"):  # names alone, no weights
        model = MODELS.get(config.model_type, AutoModelForImageTextToText.from_config)(config)
    inside = set(model.get_decoder().modules())
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module not in inside]


def require_complete(folder: Path, report: Mapping[str, Any]) -> None:
    """Nothing; raises ModelError where weights were missing, too many or of another shape: transformers only warns."""
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


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return str(error).strip().split("\n")[0]

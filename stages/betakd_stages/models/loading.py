"""Loading a model folder: the model, and the encoder that turns samples into what it eats."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel

from betakd_stages.encoding import Encoder, LlavaEncoder
from betakd_stages.errors import ModelError

ENCODERS: dict[str, type[Encoder]] = {"llava": LlavaEncoder}
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
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} lacks a tokenizer or an image processor ({_first_line(error)})") from None
    return ENCODERS[family](tokenizer, image_processor, config)


def load_model(path: str | Path, precision: str = "fp32") -> LoadedModel:
    """The model, on the GPU where there is one, and encoder of a model folder or run folder.

    Raises ModelError where they cannot be loaded.
    """
    encoder = load_encoder(path)
    folder = model_folder(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, dtype=PRECISIONS[precision], use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded ({_first_line(error)})") from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]  # a decorator of transformers hides the signature
    return LoadedModel(model, encoder, folder)


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

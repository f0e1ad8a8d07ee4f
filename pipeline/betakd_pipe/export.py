"""A run's student, or its adapter, as a folder for others: weights, tokenizer, processor and model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from betakd_pipe.card_loading import adapter_section, loading_section, with_loading_section
from betakd_pipe.model_card import hub_id, without_directories
from betakd_pipe.run_folder import CARD, CONFIG
from betakd_stages.errors import ConfigError
from betakd_stages.files import written_whole

MODEL_FILES = ("config.json", "adapter_config.json")
"""One of them is in every folder that an export may replace."""


@dataclass(frozen=True, slots=True)
class Export:
    """What is wanted of an export; `repository` is where it will be pushed, which its card then names."""

    layout: str | None = None
    dtype: str | None = None
    max_shard_size: str | None = None
    adapter: bool = False
    repository: str | None = None


def export(run: Path, out: Path, wanted: Export, *, overwrite: bool = False) -> int:
    """The bytes written to `out` of a finished run's student, or of the model in a plain model folder.

    Raises ConfigError where `out` is in use or holds the model itself, ModelError where there is no model.
    """
    from betakd_stages.models.exporting import export_adapter, export_model
    from betakd_stages.models.loading import model_folder

    model = model_folder(run)
    if model.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(model.resolve()):
        raise ConfigError(f"--out {out} is, holds or is in {model}, which is to be exported: choose another --out")
    if wanted.adapter and (wanted.layout or wanted.max_shard_size):
        raise ConfigError("--adapter has one format and one file: leave --format and --max-shard-size out")
    with written_whole(out, overwrite=overwrite, replaces=MODEL_FILES) as folder:
        if wanted.adapter:
            export_adapter(run, folder, base=hub_id(_student(run), "model"), dtype=wanted.dtype)
        else:
            export_model(
                model,
                folder,
                layout=wanted.layout,
                dtype=wanted.dtype,
                max_shard_size=wanted.max_shard_size,
            )
        if (run / CARD).is_file():
            card = _adapter_card(run, wanted) if wanted.adapter else _card(run, model, wanted)
            (folder / CARD).write_text(card, encoding="utf-8")
        return sum(path.stat().st_size for path in folder.iterdir())


def _card(run: Path, model: Path, wanted: Export) -> str:
    section = loading_section(model, wanted.repository or ".", is_repository=wanted.repository is not None)
    return with_loading_section((run / CARD).read_text(encoding="utf-8"), section)


def _adapter_card(run: Path, wanted: Export) -> str:
    """The run's card as that of its adapter."""
    card = ModelCard((run / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    card.data["library_name"] = "peft"
    if card.data.get("base_model"):
        card.data["base_model_relation"] = "adapter"
    student = _student(run)
    section = adapter_section(hub_id(student, "model") or without_directories(student), wanted.repository or ".")
    if trains_projector(run):
        section += (
            "\n\nThe projector was trained as well and is not part of the adapter: with the student's own projector "
            "the answers are others than those of the run's model."
        )
    card.text = with_loading_section(card.text, section)
    return str(card)


def trains_projector(run: Path) -> bool:
    """Whether the projector of a run was trained, which its adapter then lacks."""
    return bool(_settings(run)["training"]["train_projector"])


def _student(run: Path) -> str:
    student: str = _settings(run)["student"]
    return student.rstrip("/")


def _settings(run: Path) -> dict[str, Any]:
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run} holds no {CONFIG}: an adapter is exported from the folder of the run that made it")
    settings: dict[str, Any] = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    return settings

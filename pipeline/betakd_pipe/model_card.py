"""The model card of a run: what the student learned from, how, how it did, and how to load it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from betakd_cache import read_manifest
from betakd_pipe.run_folder import CARD, read_environment
from betakd_stages.files import write_atomically
from betakd_stages.settings import DistillSettings

_LOADING = """from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

model = AutoModelForImageTextToText.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
image_processor = AutoImageProcessor.from_pretrained("model", backend="pil")"""


def write_card(folder: Path, settings: DistillSettings, metrics: Mapping[str, float]) -> None:
    """Write `folder`/README.md."""
    recipe = settings.model_dump(
        mode="json", include={"targets", "objective", "weighting", "training", "adapter", "control", "seed"}
    )
    environment = read_environment(folder)
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    sections = [
        f"# {folder.name}: a distilled student",
        f"Student: `{settings.student}`. Data: `{settings.data}`. Cache: `{settings.cache or 'none'}`.",
        "## Load it",
        "From the folder of this file, with transformers alone:",
        f"```python\n{_LOADING}\n```",
        "## The teacher, as the cache names it",
        _teacher(settings.cache),
        "## Recipe",
        _code_block(recipe),
        "## Metrics at the end",
        _table(metrics),
        "## Made with",
        f"betakd-pipe {environment['betakd_pipe']}, Python {environment['python']}, {versions}; "
        f"{environment['platform']}, {environment['num_cores']} cores. All settings are in config.yaml.",
    ]
    write_atomically(folder / CARD, "\n\n".join(sections) + "\n")


def _teacher(cache: str | None) -> str:
    if cache is None:
        return "None: the student learned from the labels alone."
    manifest = read_manifest(cache)
    return _code_block({**manifest.identity, "counts": asdict(manifest.counts)})


def _code_block(values: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(dict(values), sort_keys=False).rstrip()}\n```"


def _table(metrics: Mapping[str, float]) -> str:
    rows = [f"| {name} | {value:.6g} |" for name, value in metrics.items()]
    return "\n".join(["| metric | value |", "|---|---|", *rows])

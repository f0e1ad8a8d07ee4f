"""The model card of a run: what the student learned from, how, how it did, how to load it, and what is not known.

The front matter is the Hub's. It names a base model, a dataset or a licence only where that is known: by a folder of
the Hub's cache, or by the card of the student that the run started from. Folders are called by their last name, so that
a card that is published does not tell about the machine.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData

from betakd_cache import read_manifest
from betakd_pipe.card_loading import LOADING_TITLE, library_of, loading_section
from betakd_pipe.final_metrics import without_spread
from betakd_pipe.run_folder import CARD, MODEL, read_environment
from betakd_stages.settings import DistillSettings

ACCURACY = "validation_accuracy"
TASK = "image-text-to-text"
TAGS = ("knowledge-distillation", "beta-kd")
"""Of students that learned from a teacher."""
OF_THE_BASE = ("license", "license_name", "license_link")
"""What a student has from the model it started from."""
DIRECTORIES = re.compile(r"[^:=?&,]*/")


def write_card(folder: Path, settings: DistillSettings, metrics: Mapping[str, float]) -> None:
    """Write `folder`/README.md."""
    base = base_card(Path(settings.student))
    sections = {
        f"# {folder.name}": _summary(settings),
        LOADING_TITLE: loading_section(folder / MODEL, MODEL),
        **_teachers(settings.caches),
        "## Recipe": _code_block(_recipe(settings)),
        "## Metrics at the end": _metrics(settings, metrics),
        "## What is not known": _not_known(settings, base),
        "## Made with": _made_with(folder),
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    card = ModelCard(f"---\n{front_matter(folder, settings, metrics, base).to_yaml()}\n---\n\n{body}\n")
    card.save(folder / CARD)


def front_matter(
    folder: Path, settings: DistillSettings, metrics: Mapping[str, float], base: CardData
) -> ModelCardData:
    """The metadata that the Hub reads; what is not known is not there."""
    base_model = hub_id(settings.student, "model") or base.get("base_model")
    results = None
    if settings.validation is not None and ACCURACY in metrics:
        results = EvalResult(
            task_type=TASK,
            dataset_type=hub_id(settings.validation, "dataset") or settings.validation.partition(":")[0],
            dataset_name=without_directories(settings.validation),
            metric_type="exact_match",
            metric_name="answers that are the label word for word, in percent",
            metric_value=round(metrics[ACCURACY], 4),
        )
    return ModelCardData(
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        datasets=hub_id(settings.data, "dataset"),
        library_name=library_of(folder / MODEL),
        pipeline_tag=TASK,
        tags=["vision-language", *(TAGS if settings.cache else ())],
        metrics=["exact_match"] if results else None,
        model_name=folder.name if results else None,
        eval_results=[results] if results else None,
        **{name: base.get(name) for name in OF_THE_BASE},
    )


def base_card(student: Path) -> CardData:
    """The metadata of the card of the model or run folder that the student started from; empty without a card."""
    folders = (student, student.parent) if student.name == MODEL else (student,)
    for folder in folders:
        if (folder / CARD).is_file():
            text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
            try:
                return ModelCard(text, ignore_metadata_errors=True).data if text.startswith("---") else CardData()
            except (ValueError, yaml.YAMLError):  # somebody else's card, which the run does not depend on
                return CardData()
    return CardData()


def hub_id(text: str, kind: str) -> str | None:
    """The Hub's id of a model or dataset that a path in `text` lies in, if that is the Hub's cache."""
    found = re.search(rf"(?:^|[/=:]){kind}s--([^/?&=]+)/snapshots/", text)
    return found[1].replace("--", "/") if found else None


def without_directories(text: str) -> str:
    """The text with every path cut to its last part."""
    return DIRECTORIES.sub("", text)


def _name(path: str, kind: str) -> str:
    return hub_id(path, kind) or without_directories(path.rstrip("/"))


def _summary(settings: DistillSettings) -> str:
    data = f"Student: `{_name(settings.student, 'model')}`. Data: `{without_directories(settings.data)}`."
    if not settings.caches:
        return f"Fine-tuned with betakd-pipe on labels alone, without a teacher.\n\n{data}"
    caches = ", ".join(f"`{_name(cache, 'dataset')}`" for cache in settings.caches)
    source, kind = "a teacher makes of the data, which a cache holds", "Cache"
    if len(settings.caches) > 1:
        source, kind = "teachers make of the data, which caches hold", "Caches"
    return (
        f"Distilled with betakd-pipe: the student learned from what {source} "
        f"(Beta-KD, [arXiv 2603.21426](https://arxiv.org/abs/2603.21426)).\n\n{data} {kind}: {caches}."
    )


def _teachers(caches: Sequence[str]) -> dict[str, str]:
    """A section for each teacher."""
    title = "## The teacher, as the cache names it"
    if not caches:
        return {title: "None: the student learned from the labels alone."}
    if len(caches) == 1:
        return {title: _teacher(caches[0])}
    return {f"{title}: {number}": _teacher(cache) for number, cache in enumerate(caches, start=1)}


def _teacher(cache: str) -> str:
    manifest = read_manifest(cache)
    identity = {name: _tidied(value) for name, value in manifest.identity.items()}
    return _code_block({**identity, "counts": asdict(manifest.counts)})


def _tidied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tidied(inner) for name, inner in value.items()}
    return without_directories(value) if isinstance(value, str) else value


def _recipe(settings: DistillSettings) -> dict[str, Any]:
    return settings.model_dump(
        mode="json", include={"targets", "ensemble", "objective", "weighting", "training", "adapter", "control", "seed"}
    )


def _metrics(settings: DistillSettings, metrics: Mapping[str, float]) -> str:
    """What was measured when, and a table of it."""
    rows = [f"| {name} | {value:.6g} |" for name, value in without_spread(metrics).items()]
    measured = (
        f"`validation_...` was measured on `{without_directories(settings.validation)}`, accuracy and agreement in "
        "percent; all else is of the last steps of the training."
        if settings.validation
        else "Of the last steps of the training; nothing was measured on held-out data."
    )
    return "\n".join([measured, "", "| metric | value |", "|---|---|", *rows])


def _not_known(settings: DistillSettings, base: CardData) -> str:
    points = [] if base.get("license") else ["The licence: the student's folder names none."]
    if not (hub_id(settings.student, "model") or base.get("base_model")):
        points.append("Where the student's folder comes from; it is known by its name alone.")
    if settings.caches:
        points.append("The teacher's name: a cache knows it by the sha256 of its weights.")
    points += [
        "How the student does on benchmarks, unless somebody ran them (`betakd-pipe evaluate`).",
        "What it does outside the data it learned from, in other languages, and what it learned of the mistakes and "
        f"biases of {'teacher and data' if settings.caches else 'the data'}. None of this was measured.",
    ]
    return "\n".join(f"- {point}" for point in points)


def _made_with(folder: Path) -> str:
    environment = read_environment(folder)
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"betakd-pipe {environment['betakd_pipe']}, Python {environment['python']}, {versions}; "
        f"{environment['platform']}, {environment['num_cores']} cores. All settings are in config.yaml of the run."
    )


def _code_block(values: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(dict(values), sort_keys=False).rstrip()}\n```"

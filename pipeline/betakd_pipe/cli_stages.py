"""The commands of the two stages: cache-teacher, distill; and build-model, which makes what they take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betakd_pipe.cli_cache import show_estimate
from betakd_pipe.cli_options import (
    Config,
    Debug,
    DryRun,
    FeatureDtype,
    Features,
    Ray,
    Recipe,
    Set,
    Targets,
    VisionFocus,
    comma_separated,
    examples,
    feature_flags,
    names_in,
    part_of_work,
)
from betakd_pipe.final_metrics import without_spread
from betakd_pipe.launch import is_first_process

if TYPE_CHECKING:
    from betakd_stages.caching.run import CacheSummary

stage_commands = typer.Typer()


@stage_commands.command(
    "cache-teacher",
    epilog=examples(
        "betakd-pipe cache-teacher --teacher teacher --data digits:transfer --out cache",
        "betakd-pipe cache-teacher --config cache.yaml --out cache --limit 100 --temperatures 0.5,1,2",
        "betakd-pipe cache-teacher --config cache.yaml --out cache --targets data,generate",
        "betakd-pipe cache-teacher --config cache.yaml --out cache --targets generate --set generation.temperature=1.0",
        "betakd-pipe cache-teacher --teacher teacher --data digits:transfer --out cache --part 0/2  (beside 1/2)",
        "betakd-pipe cache-teacher --teacher teacher --data digits:transfer --out cache --workers 2",
        "betakd-pipe cache-teacher --config cache.yaml --out s3://bucket/cache --workers 64 --ray auto",
        "betakd-pipe cache-teacher --teacher teacher --data digits:transfer --out cache --features vision:grid:4x4",
        "betakd-pipe cache-teacher --config cache.yaml --out cache --features vision:tokens,prompt --vision-focus 16",
        "betakd-pipe cache-teacher --teacher teacher --data digits:transfer --out cache --set shard_samples=256",
        "betakd-pipe cache-teacher --config cache.yaml --out cache --backend vllm --set vllm.tensor_parallel_size=2",
        "betakd-pipe cache-teacher --recipe mobilevlm-v2-teacher --teacher 7b --data ... --out cache --dry-run",
    ),
)
def cache_teacher(
    out: Annotated[str, typer.Option(help="Folder or URL (s3://bucket/cache) of the cache.")],
    teacher: Annotated[str | None, typer.Option(help="Folder of the teacher.")] = None,
    data: Annotated[str | None, typer.Option(help="NAME:SPLIT[?key=value&...], such as digits:transfer.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="hf; vllm (one pass, known versions); vllm_prompt_logprobs (any version).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.")] = None,
    targets: Targets = None,
    top_k: Annotated[int | None, typer.Option(help="Entries kept per token at most.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability that the kept entries reach.")] = None,
    temperatures: Annotated[str | None, typer.Option(help="Comma-separated, such as 0.5,1,2.")] = None,
    features: Features = None,
    feature_dtype: FeatureDtype = None,
    vision_focus: VisionFocus = None,
    part: Annotated[str, typer.Option(metavar="I/N", help="One of N processes that fill a cache together.")] = "0/1",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share this call's work, one per GPU.")] = 1,
    ray: Ray = None,
    require_grounding: Annotated[
        bool, typer.Option("--require-grounding", help="Stop, not warn, where the teacher hardly looks at images.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what is in the folder first.")] = False,
    dry_run: DryRun = False,
    recipe: Recipe = None,
    config: Config = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Stage one: run the teacher once and write what it says about every sample into a cache.

    A second call goes on where the first was interrupted, or says that all is there.
    """
    from betakd_pipe import stage_runs
    from betakd_pipe.config import load_settings
    from betakd_pipe.progress import terminal_progress
    from betakd_stages.settings import CacheTeacherSettings

    flags: dict[str, Any] = {"teacher": teacher, "data": data, "backend": backend, "limit": limit}
    flags |= {"top_k": top_k, "top_p": top_p}
    flags["temperatures"] = comma_separated("--temperatures", temperatures, float)
    flags |= feature_flags(features, feature_dtype, vision_focus) | {"targets": names_in(targets)}
    flags["require_grounding"] = require_grounding or None
    settings = load_settings(CacheTeacherSettings, config, flags, set_ or (), recipe)
    if dry_run:
        show_estimate(settings, num_parts=part_of_work(part)[1] * workers)
        return
    piece, progress = part_of_work(part), terminal_progress()
    summary = stage_runs.cache_teacher(
        settings, out, part=piece, num_workers=workers, ray=ray, overwrite=overwrite, progress=progress
    )
    print(f"{out}: {_describe(summary)}")
    if piece != (0, 1):
        others = "and so is the cache" if summary.is_complete else "other parts of the cache are not"
        print(f"{out}: part {part} is complete, {others}")


@stage_commands.command(
    epilog=examples(
        "betakd-pipe distill --student student --cache cache --data digits:transfer --out run",
        "betakd-pipe distill --config recipe.yaml --out run --energy fkl --energy cosine_probs --weighting instance",
        "betakd-pipe distill --config recipe.yaml --out run --weighting fixed --set weighting.options.beta=3",
        "betakd-pipe distill --config recipe.yaml --out run --energy ce  (labels only)",
        "betakd-pipe distill --config recipe.yaml --out run --targets generated  (the teacher's own answers)",
        "betakd-pipe distill --config recipe.yaml --out run --vision-cache vision",
        "betakd-pipe distill --config recipe.yaml --out run --adapter lora --set adapter.rank=8",
        "betakd-pipe distill --config recipe.yaml --out run --cache s3://bucket/cache --staging /scratch/shards",
        "betakd-pipe distill --recipe mobilevlm-v2-stage2 --student 1.7b --cache cache --data ... --out run --dry-run",
        "accelerate launch --num_processes 8 -m betakd_pipe distill --config recipe.yaml --out run",
    )
)
def distill(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    student: Annotated[str | None, typer.Option(help="Folder of the student to start from.")] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="Folder or URL of the teacher cache; repeat for several teachers.")
    ] = None,
    teacher_weighting: Annotated[
        str | None, typer.Option(help="Of several teachers: uniform, entropy, confidence, trust or learned.")
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(help="Several teachers as a mixture, as channels, or as a mixture of priors (prior)."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="NAME:SPLIT[?key=value&...], such as digits:transfer.")] = None,
    energy: Annotated[list[str] | None, typer.Option(help="An energy by name; repeat for several; ce: none.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="vision or prompt; repeat for both.")] = None,
    weighting: Annotated[str | None, typer.Option(help="fixed, task or instance.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="none, lora, dora or qlora: adapters train, not the model.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    cross_entropy_weight: Annotated[float | None, typer.Option(help="Weight of the labels.")] = None,
    targets: Annotated[
        str | None, typer.Option(help="Answers learned: data, or generated (written by the cache's teacher).")
    ] = None,
    on_mismatch: Annotated[str | None, typer.Option(help="Samples that differ from the cache's: stop or drop.")] = None,
    staging: Annotated[str | None, typer.Option(help="Folder for shards of a cache in an object store.")] = None,
    staging_limit: Annotated[float | None, typer.Option(metavar="GB", help="The most kept there.")] = None,
    vision_cache: Annotated[
        str | None, typer.Option(help="Folder that cache-vision wrote: the vision tower does not run.")
    ] = None,
    dry_run: DryRun = False,
    recipe: Recipe = None,
    config: Config = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Stage two: distil a student from a cache; the teacher itself is not needed any more.

    A finished run is left alone; an interrupted one goes on from its last checkpoint.
    """
    from betakd_pipe import stage_runs
    from betakd_pipe.config import load_settings
    from betakd_pipe.progress import terminal_progress
    from betakd_stages.settings import DistillSettings

    flags: dict[str, Any] = {"student": student, "cache": cache, "data": data, "seed": seed}
    flags |= {"objective.energies": _energies(energy), "objective.features": feature, "vision_cache": vision_cache}
    flags["objective.cross_entropy_weight"] = cross_entropy_weight
    flags |= {"weighting.name": weighting, "adapter.kind": adapter}
    flags |= {"ensemble.weighting": teacher_weighting, "ensemble.combine": combine}
    flags |= {"targets": targets, "on_mismatch": on_mismatch, "staging": staging, "staging_limit_gb": staging_limit}
    settings = load_settings(DistillSettings, config, flags, set_ or (), recipe)
    if dry_run:
        for name, value in stage_runs.dry_run(settings, out, progress=terminal_progress()).items():
            print(f"{name}: {value}")
        return
    if stage_runs.distillation_is_finished(settings, out):
        if is_first_process():
            print(f"{out}: already finished; nothing to do")
        return
    stages = stage_runs.load_stages()
    summary = stage_runs.distill(settings, out, progress=terminal_progress(), stages=stages)
    if is_first_process():
        shown = without_spread(summary.final_metrics)
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        print(f"{out}: {summary.steps} steps; {metrics}")


@stage_commands.command(
    "build-model",
    epilog=examples(
        "betakd-pipe build-model --language-model Qwen2.5-0.5B-Instruct --vision-tower clip-vit-large-patch14-336 "
        "--out student",
    ),
)
def build_model(
    language_model: Annotated[Path, typer.Option(help="Folder of a language model with ChatML's tokens.")],
    vision_tower: Annotated[Path, typer.Option(help="Folder of a CLIP or SigLIP model.")],
    out: Annotated[Path, typer.Option(help="Folder of the model that is written.")],
    seed: Annotated[int, typer.Option(help="Of the projector's weights, which are new.")] = 0,
    image_token: Annotated[str, typer.Option(help="Special token that images replace.")] = "<|image_pad|>",
    debug: Debug = False,
) -> None:
    """Join a language model and a vision tower into a LLaVA model, such as LLaVA-Qwen."""
    from betakd_pipe import stage_runs

    built = stage_runs.build_model(language_model, vision_tower, out, seed=seed, image_token=image_token)
    parts = ", ".join(f"{part} {number / 1e6:.1f} M" for part, number in built.num_parameters.items())
    print(f"{out}: {parts} parameters")


def _energies(names: list[str] | None) -> list[str] | None:
    """The energies named by flags; `ce` alone stands for none, None for no flag."""
    from betakd_stages.errors import ConfigError

    if names and "ce" in names:
        if len(names) > 1:
            raise ConfigError(f"--energy ce means the labels alone; found {', '.join(names)}: leave out ce")
        return []
    return names


def _describe(summary: "CacheSummary") -> str:
    """What stage one left behind, in one line; a sample with both targets counts twice."""
    new = f"{summary.num_new} new" if summary.num_new else "all there before"
    rejected = f", {summary.num_rejected} rejected" if summary.num_rejected else ""
    cut = f", {summary.num_cut_answers} cut off by generation.max_new_tokens or the context"
    written = f"{summary.num_generated} with answers the teacher wrote{cut if summary.num_cut_answers else ''}"
    parts = [
        f"{summary.num_samples} samples ({new}{rejected})",
        *([written] if summary.num_generated else []),
        f"{summary.num_tokens} tokens",
        f"{summary.size_bytes / 1e6:.2f} MB",
    ]
    return ", ".join(parts)

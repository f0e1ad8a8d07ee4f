"""The stages inside their run folders: each function here is one command, without the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from betakd_pipe.cluster.caching import cache_teacher_on_ray
from betakd_pipe.cluster.evaluation import evaluate_on_ray
from betakd_pipe.export import Export
from betakd_pipe.export import export as export_run
from betakd_pipe.launch import is_first_process
from betakd_pipe.model_card import write_card
from betakd_pipe.run_folder import CARD, MODEL, check_configuration, run_folder
from betakd_stages.errors import ConfigError
from betakd_stages.progress import Progress, SilentProgress
from betakd_stages.settings import (
    CacheTeacherSettings,
    CacheVisionSettings,
    DistillSettings,
    EvaluateSettings,
    MixtureSettings,
    TrustSettings,
)

if TYPE_CHECKING:
    from betakd_stages.caching.run import CacheSummary
    from betakd_stages.caching.vision import VisionSummary
    from betakd_stages.caching.vision_estimation import VisionEstimate
    from betakd_stages.distillation.run import DistillSummary
    from betakd_stages.ensemble.merging import MergedMixture
    from betakd_stages.inspection import SampleView
    from betakd_stages.models.building import BuiltModel
    from betakd_stages.trust.report import TrustReport


@dataclass(frozen=True, slots=True)
class Stages:
    """The stage functions that work in run folders, so that a test can give its own."""

    distill: Callable[..., Any]
    evaluate: Callable[..., Any]
    visible_gpus: Callable[[], list[str]]
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""


def load_stages() -> Stages:
    """The real stages; imports torch, which takes seconds."""
    from betakd_stages.caching.workers import visible_gpus
    from betakd_stages.distillation.run import distill
    from betakd_stages.evaluation.run import evaluate

    _hide_bars_of_transformers()
    return Stages(distill, evaluate, visible_gpus)


def cache_teacher(
    settings: CacheTeacherSettings,
    out: Path | str,
    *,
    part: tuple[int, int] = (0, 1),
    num_workers: int = 1,
    ray: str | None = None,
    overwrite: bool,
    progress: Progress,
) -> "CacheSummary":
    """What is in the cache after stage one; the cache is its own record and needs no run folder.

    The workers are processes of this machine, or tasks on the Ray cluster at the address `ray`.
    """
    from betakd_stages.caching.run import cache_teacher as stage
    from betakd_stages.caching.workers import cache_teacher_in_workers

    _hide_bars_of_transformers()
    if overwrite and (num_workers > 1 or ray is not None):
        several = f"--workers {num_workers}" if ray is None else f"--ray {ray}"
        raise ConfigError(f"{several} and --overwrite: several writers cannot overwrite {out}; remove it first")
    if ray is not None:
        return cache_teacher_on_ray(settings, str(out), ray, num_workers=num_workers, part=part, progress=progress)
    if num_workers > 1:
        return cache_teacher_in_workers(settings, out, num_workers=num_workers, part=part, progress=progress)
    return stage(settings, out, part=part, overwrite=overwrite, progress=progress)


def cache_trust(settings: TrustSettings, *, num_clashes: int = 10, progress: Progress) -> "TrustReport":
    """How far the teacher of a cache can be believed; written beside the cache, or where the settings say."""
    from betakd_stages.trust.run import fit_trust as stage

    return stage(settings, num_clashes=num_clashes, progress=progress)


def cache_mixture(settings: MixtureSettings, out: str, *, overwrite: bool, progress: Progress) -> "MergedMixture":
    """What was mixed into one cache."""
    from betakd_stages.ensemble.merging import merge_mixture as stage

    return stage(settings, out, overwrite=overwrite, progress=progress)


def cache_vision(
    settings: CacheVisionSettings, out: str, *, part: tuple[int, int], overwrite: bool, progress: Progress
) -> "VisionSummary":
    """What is in the vision cache afterwards; it is its own record and needs no run folder."""
    from betakd_stages.caching.vision import cache_vision as stage

    _hide_bars_of_transformers()
    return stage(settings, out, part=part, overwrite=overwrite, progress=progress)


def estimate_vision(settings: CacheVisionSettings, out: str, *, progress: Progress) -> "VisionEstimate":
    """What `cache_vision` will cost; nothing is kept."""
    from betakd_stages.caching.vision_estimation import estimate_vision as stage

    _hide_bars_of_transformers()
    return stage(settings, out, progress=progress)


def build_model(language_model: Path, vision_tower: Path, out: Path, *, seed: int, image_token: str) -> "BuiltModel":
    """What was joined into one model folder."""
    from betakd_stages.models.building import build_model as stage

    _hide_bars_of_transformers()
    return stage(language_model, vision_tower, out, seed=seed, image_token=image_token)


def distill(settings: DistillSettings, out: Path, *, progress: Progress, stages: Stages) -> "DistillSummary":
    """What stage two ended with; resumes an interrupted run, and writes the model card last.

    Of several processes the first one owns the folder; the others train with it.
    """
    if not is_first_process():
        helped: DistillSummary = stages.distill(settings, out, progress=SilentProgress())
        return helped
    with run_folder(out, settings) as folder:
        summary: DistillSummary = stages.distill(settings, folder, progress=progress)
        write_card(folder, settings, summary.final_metrics)
    return summary


def dry_run(settings: DistillSettings, out: Path, *, progress: Progress) -> dict[str, Any]:
    """What `distill` would need, in words. Raises what it would raise for these settings and this folder."""
    from betakd_stages.distillation.dry_run import describe
    from betakd_stages.distillation.dry_run import dry_run as stage

    check_configuration(out, settings)
    _hide_bars_of_transformers()
    return describe(stage(settings, progress=progress))


def distillation_is_finished(settings: DistillSettings, out: Path) -> bool:
    """Whether `out` holds this very run, ended. Raises ConfigError where it holds another."""
    check_configuration(out, settings)
    return (out / MODEL).is_dir() and (out / CARD).is_file()


def evaluate(
    settings: EvaluateSettings, out: Path, *, ray: str | None = None, progress: Progress, stages: Stages
) -> dict[str, Any]:
    """The scores of a model, as in `out`/scores.json; the stage knows whether they are there already.

    With `ray`, the benchmarks are tasks on the Ray cluster at that address.
    """
    with run_folder(out, settings) as folder:
        if ray is not None:
            evaluate_on_ray(settings, folder, ray, progress=progress)
        scores: dict[str, Any] = stages.evaluate(settings, folder, progress=progress)
    return scores


def inspect_samples(
    run: Path, settings: DistillSettings, *, sample_ids: Sequence[str], count: int, num_guesses: int
) -> "list[SampleView]":
    """Samples of a finished run, end to end; writes nothing."""
    from betakd_stages.inspection import inspect_samples as stage

    _hide_bars_of_transformers()
    return stage(run, settings, sample_ids=sample_ids, count=count, num_guesses=num_guesses)


def export(run: Path, out: Path, wanted: Export, *, overwrite: bool) -> int:
    """The bytes written to `out` of a run's student or adapter."""
    _hide_bars_of_transformers()
    return export_run(run, out, wanted, overwrite=overwrite)


def _hide_bars_of_transformers() -> None:
    """Loading and saving weights would draw bars across ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()

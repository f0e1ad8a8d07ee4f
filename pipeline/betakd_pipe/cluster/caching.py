"""Stage one as tasks on a Ray cluster, one for each part of the cache."""

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from betakd_pipe.cluster.following import PartProgress, Shown, follow
from betakd_pipe.cluster.ray_pool import ray_pool
from betakd_stages.progress import Progress
from betakd_stages.settings import CacheTeacherSettings

if TYPE_CHECKING:
    from betakd_stages.caching.run import CacheSummary

ACTIVITY = "teacher"


def cache_teacher_on_ray(
    settings: CacheTeacherSettings,
    out: str,
    address: str,
    *,
    num_workers: int,
    part: tuple[int, int] = (0, 1),
    progress: Progress,
) -> "CacheSummary":
    """What `cache_teacher` does for a part, shared by `num_workers` tasks; the cluster runs as many at once as fit.

    Raises UserError with the message of the first task that fails; the others commit what they have and end, and the
    same call goes on from there. Each task may reject `settings.max_rejected` samples.
    """
    from betakd_cache.object_store import is_url
    from betakd_stages.caching.run import summary
    from betakd_stages.caching.workers import share
    from betakd_stages.data import load_samples

    num_samples = len(load_samples(settings.data)[: settings.limit][part[0] :: part[1]])
    default_gpus = 1 if settings.backend == "hf" else settings.vllm.tensor_parallel_size
    shared = None if is_url(out) else Path(out)
    with ray_pool(address, settings.ray, shared=shared, default_gpus=default_gpus) as pool:
        board = pool.board()
        shown = Shown(progress, ACTIVITY, num_samples * len(settings.targets))
        try:
            tasks: dict[Future[tuple[bool, int]], str] = {}
            for number in range(num_workers):
                name = f"part {number + 1} of {num_workers}"
                own = share(part, number, num_workers)
                tasks[pool.submit(work_on_part, settings, out, own, PartProgress(board, name))] = name
            done = follow(tasks, board, shown)
        finally:
            progress.finish()
    return summary(out, any(complete for complete, _ in done.values()), shown.num_new(done))


def work_on_part(
    settings: CacheTeacherSettings, out: str, part: tuple[int, int], progress: PartProgress
) -> tuple[bool, int]:
    """A task: whether the cache was complete when this part was, and how many samples the part has behind it."""
    from transformers.utils import logging

    from betakd_stages.caching.run import cache_teacher

    logging.disable_progress_bar()
    found = cache_teacher(settings, out, part=part, progress=progress)
    return found.is_complete, progress.before + found.num_new

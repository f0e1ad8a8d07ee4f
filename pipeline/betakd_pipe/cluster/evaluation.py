"""Benchmarks of an evaluation as tasks on a Ray cluster, one for each."""

from concurrent.futures import Future
from pathlib import Path

from betakd_pipe.cluster.following import PartProgress, Shown, follow
from betakd_pipe.cluster.ray_pool import ray_pool
from betakd_stages.progress import Progress
from betakd_stages.settings import EvaluateSettings


def evaluate_on_ray(settings: EvaluateSettings, out: Path, address: str, *, progress: Progress) -> None:
    """Fill the folder of each benchmark, as the stage does; those that are there already stay.

    The stage itself then finds all scores and joins them. Raises what it raises before anything runs, and UserError
    with the message of the first task that fails; the others end, and the same call goes on behind their answers.
    """
    from betakd_stages.evaluation.preparation import prepared

    left = [task for task in prepared(settings, out) if task.finished is None]
    if not left:
        return
    default_gpus = 1 if settings.backend == "hf" else settings.vllm.tensor_parallel_size
    with ray_pool(address, settings.ray, shared=out, default_gpus=default_gpus) as pool:
        board = pool.board()
        shown = Shown(progress, "evaluate", sum(len(task.benchmark.samples) for task in left))
        try:
            tasks: dict[Future[None], str] = {}
            for task in left:
                name = f"benchmark {task.benchmark.name}"
                tasks[pool.submit(work_on_benchmark, task.settings, task.out, PartProgress(board, name))] = name
            follow(tasks, board, shown)
        finally:
            progress.finish()


def work_on_benchmark(settings: EvaluateSettings, out: Path, progress: PartProgress) -> None:
    """A task: one benchmark, which goes on where it was interrupted."""
    from transformers.utils import logging

    from betakd_stages.evaluation.run import evaluate

    logging.disable_progress_bar()
    evaluate(settings, out, progress=progress)

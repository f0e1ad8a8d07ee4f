"""The posterior around the student that a run ended with: snapshots, taken behind the run's last step.

The run itself stays what it was, byte for byte, and so does the student. What the objective learned, such as weights
of channels, is part of the posterior's definition and stays fixed.
"""

import itertools
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from betakd_stages.distillation.batches import RunBatches
from betakd_stages.distillation.distiller import load_tensors, load_trained, trained_parameters, trained_tensors
from betakd_stages.distillation.preparation import Prepared
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.models.loading import weights_sha256
from betakd_stages.posterior.langevin import snapshots
from betakd_stages.posterior.snapshot_files import (
    BASE,
    FOLDER,
    MAP,
    require_base,
    save_tensors,
    snapshot_path,
    snapshot_paths,
)
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings

logger = logging.getLogger(__name__)


def sample_posterior(settings: DistillSettings, prepared: Prepared, out: Path, progress: Progress) -> None:
    """Nothing; fills `out`/posterior with the student's weights and snapshots around them, behind those there are.

    Raises MismatchError where the objective is not finite any more, ModelError where the snapshots that there are
    belong to a run from another student.
    """
    student, folder, wanted = prepared.student.model, out / FOLDER, settings.posterior
    base = weights_sha256(prepared.student.folder)
    if (folder / MAP).is_file():
        require_base(folder, prepared.student.folder, base)
    trained = trained_tensors(student)
    save_tensors(trained, folder / MAP, {BASE: base})
    parameters = trained_parameters(student)
    centre = [parameter.detach().clone() for parameter in parameters]
    done = snapshot_paths(folder)
    if done:
        load_trained(student, done[-1])
    trainer = prepared.trainer(settings)
    prepared.distiller.train()
    prepared.distiller.objective.eval()  # energies that count steps do not go on
    gradients = partial(_gradients, trainer, prepared, wanted.every_steps, progress)
    progress.start("posterior", total=wanted.num_steps, done=len(done) * wanted.every_steps)
    try:
        objectives = snapshots(
            *(parameters, centre, gradients, wanted),
            num_samples=len(prepared.dataset),
            seed=settings.seed,
            num_done=len(done),
        )
        for index, objective in enumerate(objectives, start=len(done)):
            save_tensors(trained_tensors(student), snapshot_path(folder, index))
            logger.info("snapshot %d of %d: mean objective %.4f", index + 1, wanted.count, objective)
    finally:
        progress.finish()
        load_tensors(student, trained)


def _gradients(
    trainer: DistillationTrainer, prepared: Prepared, num_steps: int, progress: Progress, seed: int
) -> Iterator[float]:
    """The mean objective of each of so many steps, whose gradients are then at the student's parameters."""
    shape = prepared.shape
    batches = RunBatches(len(prepared.dataset), shape, num_steps=num_steps, process_index=0, seed=seed)
    loader = iter(trainer.get_train_dataloader(batches))
    while step := list(itertools.islice(loader, shape.accumulation)):
        count = trainer._get_num_items_in_batch(step, trainer.args.device)
        for batch in step:
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(
                    prepared.distiller, trainer._prepare_inputs(batch), num_items_in_batch=count
                )
            loss.backward()
        (figures,) = trainer.take_figures()
        yield float(figures["objective"] / figures["count"])
        prepared.distiller.objective.zero_grad()
        progress.advance(1)

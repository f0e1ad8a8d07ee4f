"""transformers' Trainer with our objective inside."""

import itertools
import logging
import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from betakd_stages.distillation.checkpoints import (
    CHECKPOINT_COMPLETE,
    FIGURES_FILE,
    OBJECTIVE_FILE,
    STUDENT_FILE,
    TRAINER_STATE_FILE,
)
from betakd_stages.distillation.distiller import (
    Distiller,
    load_trained,
    load_weights,
    save_trained,
    save_weights,
    to_cpu,
    trained_parameters,
)
from betakd_stages.distillation.interruption import StopRequest
from betakd_stages.distillation.optimizers import optimizer_class_and_options, student_groups
from betakd_stages.distillation.selection import Selection
from betakd_stages.distillation.training_log import TrainingLog, collapsing, summarise
from betakd_stages.errors import ConfigError
from betakd_stages.objective import require_finite
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings
from betakd_stages.weightings import GradientWeighting

logger = logging.getLogger(__name__)


class DistillationTrainer(Trainer):
    """Differs from the plain Trainer in the loss and its count, the optimizer's groups, clipping and checkpoints."""

    # The loss is divided by the number of samples (or tokens) of the whole optimizer step: nothing is left to scale.
    loss_is_scaled_for_ga = True

    def __init__(self, distiller: Distiller, settings: DistillSettings, **arguments: Any) -> None:
        super().__init__(model=distiller, **arguments)
        self.distiller = distiller
        self.settings = settings
        self.figures: list[dict[str, Tensor]] = []
        self.remove_callback(PrinterCallback)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the last step, from a checkpoint if there is one."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_FILE))
            if state.global_step == state.max_steps:  # from here the Trainer would go one step too far
                self._load_from_checkpoint(str(checkpoint))
                self.state = state
                return
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """What the step's summed objective is divided by, over all accumulated batches and all processes."""
        count = torch.zeros((), device=device)
        for batch in batch_samples:
            tokens = (batch["labels"][:, 1:] >= 0).sum(dim=1)
            counted = tokens if self.settings.objective.reduction == "token" else tokens > 0
            count += counted.sum().to(device)
        if self.args.world_size > 1:
            count = self.accelerator.reduce(count, reduction="sum")
        return count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's part of the step's mean objective. Raises MismatchError naming samples and terms not finite."""
        output = model(inputs)
        require_finite(output, inputs["sample_ids"], self.distiller.objective.channels)
        self.figures.append(to_cpu(output))
        assert num_items_in_batch is not None
        # Data-parallel wrappers average gradients over processes; the count is already over all of them.
        loss = output.total * self.args.world_size / num_items_in_batch
        return (loss, output) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One batch forward and backward; weightings that combine gradients have a backward pass of their own."""
        objective = self.distiller.objective
        if not isinstance(objective.weighting, GradientWeighting):
            return super().training_step(model, inputs, num_items_in_batch)
        if self.args.world_size > 1:
            raise ConfigError("gradnorm and pcgrad run in one process: choose another weighting, or one process")
        model.train()
        loss, output = self.compute_loss(model, self._prepare_inputs(inputs), True, num_items_in_batch)
        assert num_items_in_batch is not None
        objective.backward(output, trained_parameters(self.distiller.student), torch.as_tensor(num_items_in_batch))
        return loss.detach()

    def measure_scales(self) -> None:
        """Show a weighting that must see the losses before any update (manual) the first batches."""
        batches = itertools.chain.from_iterable(itertools.repeat(self.get_train_dataloader()))
        self.distiller.train()
        with torch.no_grad():
            for batch in itertools.islice(batches, self.distiller.objective.remaining_batches):
                self.distiller(self._prepare_inputs(batch))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The named optimizer, over the student's groups and the objective's own."""
        if self.optimizer is None:
            training, weighting = self.settings.training, self.settings.weighting
            groups = [
                *student_groups(self.distiller.student, training),
                *self.distiller.objective.parameter_groups(
                    weighting_lr=weighting.learning_rate, lr=training.learning_rate, weight_decay=training.weight_decay
                ),
            ]
            optimizer_class, options = optimizer_class_and_options(self.args)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the student's gradients alone: a learned weight must not shrink the student's step."""
        return self.accelerator.clip_grad_norm_(trained_parameters(self.distiller.student), self.args.max_grad_norm)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = self._checkpoints() / f"checkpoint-{self.state.global_step}"
        with (folder / CHECKPOINT_COMPLETE).open("w") as file:
            os.fsync(file.fileno())

    def _checkpoints(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir) if output_dir else self._checkpoints()
        folder.mkdir(parents=True, exist_ok=True)
        save_trained(self.distiller.student, folder / STUDENT_FILE)
        save_weights(self.distiller.objective, folder / OBJECTIVE_FILE)
        # Those of the steps since the last row of metrics: the next row does not show that there was a checkpoint.
        figures = {
            f"{index} {name}": value for index, batch in enumerate(self.figures) for name, value in batch.items()
        }
        save_file(figures, folder / FIGURES_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trained(self.distiller.student, folder / STUDENT_FILE)
        load_weights(self.distiller.objective, folder / OBJECTIVE_FILE)
        figures: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / FIGURES_FILE).items():
            index, name = key.split()
            figures.setdefault(int(index), {})[name] = value
        self.figures = [figures[index] for index in sorted(figures)]


class RunCallback(TrainerCallback):
    """After each step: advance the objective, write metrics, show progress, ask for checkpoints, stop if asked to."""

    def __init__(
        self,
        trainer: DistillationTrainer,
        log: TrainingLog,
        selection: Selection,
        progress: Progress,
        request: StopRequest,
    ) -> None:
        self._trainer = trainer
        self._log = log
        self._selection = selection
        self._progress = progress
        self._request = request
        self._first_row: dict[str, float | None] = {}
        self._warned: set[str] = set()
        self.stopped_by: signal.Signals | None = None
        """The signal that ended the training after a step, with a checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.measure_scales()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        training = self._trainer.settings.training
        step, last = state.global_step, state.global_step == state.max_steps
        self._trainer.distiller.objective.advance(step / state.max_steps)
        if self._selection.after_step(step, last=last):
            last = control.should_training_stop = True
            state.max_steps = step  # so that a checkpoint from here has nothing left to train
        if step % training.log_every_steps == 0 or last:
            row = summarise(self._trainer.figures, self._trainer.distiller.objective.channels)
            row["learning_rate"] = self._trainer._get_learning_rate()
            self._trainer.figures.clear()
            self._log.write(step, row)
            self._warn_of_collapse(step, row)
            self._progress.advance(0, objective=f"{row['objective']:.4f}")
        self._progress.advance(1)
        self.stopped_by = self._request.signal
        stop = self.stopped_by is not None
        control.should_save = stop or (step % training.checkpoint_every_steps == 0 and not last)
        control.should_training_stop = stop or control.should_training_stop
        return control

    def _warn_of_collapse(self, step: int, row: dict[str, float | None]) -> None:
        self._first_row = self._first_row or row
        for channel in collapsing(self._first_row, row, self._trainer.distiller.objective.channels):
            if channel not in self._warned:
                logger.warning(
                    f"step {step}: the weight of {channel} grows where the teacher knows least (its log correlates "
                    f"{row[f'entropy_correlation/{channel}']:+.2f} with the teacher's entropy): it collapses. "
                    "Try the energy's include_teacher_entropy or confidence_gate, or task weighting"
                )
                self._warned.add(channel)

"""transformers' Trainer with our objective inside."""

import itertools
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer_callback import PrinterCallback

from betakd_stages.distillation.batches import RunBatches
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
from betakd_stages.distillation.optimizers import optimizer_class_and_options, student_groups
from betakd_stages.distillation.training_log import batch_sizes
from betakd_stages.encoding import supervised_tokens
from betakd_stages.objective import require_finite
from betakd_stages.processes import gather_from_processes
from betakd_stages.settings import DistillSettings
from betakd_stages.weightings import GradientWeighting


class DistillationTrainer(Trainer):
    """Differs from the plain Trainer in the loss and its count, the optimizer's groups, clipping and checkpoints."""

    # The loss is divided by the number of samples (or tokens) of the whole optimizer step: nothing is left to scale.
    loss_is_scaled_for_ga = True

    def __init__(self, distiller: Distiller, settings: DistillSettings, batches: RunBatches, **arguments: Any) -> None:
        super().__init__(model=distiller, **arguments)
        self.distiller = distiller
        self.settings = settings
        self._batches = batches
        self._figures: list[tuple[int, dict[str, Tensor]]] = []
        self.remove_callback(PrinterCallback)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the last step, from a checkpoint if there is one."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_FILE))
            if state.global_step == state.max_steps:  # from here the Trainer would go one step too far
                self._read_checkpoint(checkpoint)
                self.state = state
                return
            self._read_checkpoint(checkpoint)  # into a model that no wrapper has taken apart yet
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """What the step's summed objective is divided by, over all accumulated batches and all processes."""
        count = torch.zeros((), device=device)
        for batch in batch_samples:
            tokens = supervised_tokens(batch)
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
        self._figures.append((self.state.global_step, {**to_cpu(output), **batch_sizes(inputs)}))
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
        model.train()
        loss, output = self.compute_loss(model, self._prepare_inputs(inputs), True, num_items_in_batch)
        assert num_items_in_batch is not None
        objective.backward(output, trained_parameters(self.distiller.student), torch.as_tensor(num_items_in_batch))
        return loss.detach()

    def get_train_dataloader(self, batches: RunBatches | None = None) -> DataLoader:
        """The batches of this process, the run's or others; accelerate has nothing left to share out."""
        workers = self.settings.training.data_workers
        if workers is None:
            workers = 4 if torch.cuda.is_available() else 0
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=batches or self._batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            # Of its own, so that the workers' seeds take nothing from the training's random numbers.
            generator=torch.Generator().manual_seed(self.settings.seed),
        )

    def take_figures(self) -> list[dict[str, Tensor]]:
        """The figures of the steps since the last call, one for each, of all batches and processes together."""
        figures = self._gathered_figures()
        self._figures.clear()
        return [
            {name: _joined([batch[name] for batch in batches]) for name in batches[0]} for batches in figures.values()
        ]

    def _gathered_figures(self) -> dict[int, list[dict[str, Tensor]]]:
        steps: dict[int, list[dict[str, Tensor]]] = {}
        for step, figures in itertools.chain.from_iterable(gather_from_processes(self._figures)):
            steps.setdefault(step, []).append(figures)
        return {step: steps[step] for step in sorted(steps)}

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
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            folder = self._checkpoints() / f"checkpoint-{self.state.global_step}"
            with (folder / CHECKPOINT_COMPLETE).open("w") as file:
                os.fsync(file.fileno())

    def _checkpoints(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what a checkpoint holds of the student, the objective, and the figures not yet in a row of metrics."""
        folder = Path(output_dir) if output_dir else self._checkpoints()
        save_trained(self.distiller.student, folder / STUDENT_FILE)
        save_weights(self.distiller.objective, folder / OBJECTIVE_FILE)
        figures = self._gathered_figures()
        if self.is_world_process_zero():
            tensors = {
                f"{step} {index} {name}": value
                for step, batches in figures.items()
                for index, batch in enumerate(batches)
                for name, value in batch.items()
            }
            save_file(tensors, folder / FIGURES_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `train_from` has done so."""

    def _read_checkpoint(self, folder: Path) -> None:
        load_trained(self.distiller.student, folder / STUDENT_FILE)
        load_weights(self.distiller.objective, folder / OBJECTIVE_FILE)
        if not self.is_world_process_zero():
            return
        batches: dict[tuple[int, int], dict[str, Tensor]] = {}
        for key, value in load_file(folder / FIGURES_FILE).items():
            step, index, name = key.split()
            batches.setdefault((int(step), int(index)), {})[name] = value
        self._figures = [(place[0], batches[place]) for place in sorted(batches)]


def _joined(values: list[Tensor]) -> Tensor:
    """Batches of one step as one: per-sample figures follow each other, totals are added."""
    return torch.cat(values) if values[0].ndim else torch.stack(values).sum(dim=0)

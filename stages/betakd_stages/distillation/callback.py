"""What happens after each step of a student's training."""

import logging
import signal
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from betakd_stages.distillation.interruption import StopRequest
from betakd_stages.distillation.precision import loss_scale
from betakd_stages.distillation.probe import Probe
from betakd_stages.distillation.selection import Selection
from betakd_stages.distillation.tracking import report
from betakd_stages.distillation.trainer import DistillationTrainer
from betakd_stages.distillation.training_log import TrainingLog, collapsing, summarise
from betakd_stages.processes import largest_of_processes
from betakd_stages.progress import Progress

logger = logging.getLogger(__name__)


class RunCallback(TrainerCallback):
    """After each step: advance the objective, write metrics, probe, show progress, ask for checkpoints, stop if asked
    to."""

    def __init__(
        self,
        trainer: DistillationTrainer,
        log: TrainingLog | None,
        selection: Selection,
        probe: Probe,
        progress: Progress,
        request: StopRequest,
    ) -> None:
        self._trainer = trainer
        self._log = log
        self._selection = selection
        self._probe = probe
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
        self._probe.after_step(state.global_step, last=False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        training = self._trainer.settings.training
        step, last = state.global_step, state.global_step == state.max_steps
        self._trainer.distiller.objective.advance(step / state.max_steps)
        stops_early = self._selection.after_step(step, last=last)
        if measured := self._selection.row_of(step):
            report(self._trainer, measured)
        if stops_early:
            last = control.should_training_stop = True
            state.max_steps = step  # so that a checkpoint from here has nothing left to train
        if step % training.log_every_steps == 0 or last:
            self._write_row(step)
        self._probe.after_step(step, last=last)
        self._progress.advance(1)
        self.stopped_by = self._signal_of_any_process()
        stop = self.stopped_by is not None
        # Where snapshots follow the last step, they start from it again if they are interrupted.
        due = self._trainer.settings.posterior.count > 0 if last else step % training.checkpoint_every_steps == 0
        control.should_save = stop or due
        control.should_training_stop = stop or control.should_training_stop
        return control

    def _write_row(self, step: int) -> None:
        figures = self._trainer.take_figures()
        scale = loss_scale(self._trainer.accelerator.scaler)  # the same in every process
        if self._log is None:
            return
        row = summarise(figures, self._trainer.distiller.objective.channels, self._log.entropy_borders)
        row |= {"learning_rate": self._trainer._get_learning_rate(), **scale}
        report(self._trainer, row | self._log.write(step, row, figures))
        self._warn_of_collapse(step, row)
        self._progress.advance(0, objective=f"{row['objective']:.4f}")

    def _signal_of_any_process(self) -> signal.Signals | None:
        """So that all stop after the same step: a signal reaches each of them in a step of its own."""
        number = largest_of_processes(self._request.signal or 0, self._trainer.args.device)
        return signal.Signals(number) if number else None

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

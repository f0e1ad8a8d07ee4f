"""Trackers that show a run while it trains, TensorBoard, Weights & Biases and others: transformers' own callbacks.

What they need beyond that is here: a place in the run folder, and that a resumed run goes on with the same curves.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from betakd_stages.errors import ConfigError
from betakd_stages.files import write_atomically
from betakd_stages.models.loading import first_line
from betakd_stages.settings import DistillSettings

PROJECT = "betakd-pipe"
"""In Weights & Biases, unless the variable WANDB_PROJECT names another."""


def tracking_callbacks(settings: DistillSettings, out: Path) -> list[TrainerCallback]:
    """The callbacks of the trackers in training.report_to; nothing is written before the training begins.

    Raises ConfigError for a tracker that transformers does not know, or whose package is missing.
    """
    own = {"tensorboard": lambda: RunTensorBoard(out), "wandb": lambda: RunWandb(out, settings)}
    callbacks = []
    for name in settings.training.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(
                f"training.report_to has {name!r}: choose among {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            )
        try:
            callbacks.append(own.get(name, INTEGRATION_TO_CALLBACK[name])())
        except (ImportError, RuntimeError) as error:
            extra = " (pip install 'betakd-pipe[tracking]')" if name in own else ""
            raise ConfigError(
                f"training.report_to has {name}, which cannot be had here ({first_line(error)}): install it{extra}, or "
                "leave it out"
            ) from None
    return callbacks


def report(trainer: Trainer, row: Mapping[str, Any]) -> None:
    """Send a row of metrics, timings or validation to the trackers; figures that are undefined are left out.

    Validation is called `eval_...`, from which they make a group of its own.
    """
    shown = {
        name.replace("validation_", "eval_", 1) if name.startswith("validation_") else name: value
        for name, value in row.items()
        if name != "step" and value is not None
    }
    trainer.log(shown)
    trainer.state.log_history.clear()  # the run folder has it; checkpoints would grow with every row


class RunTensorBoard(TensorBoardCallback):
    """Events in `tensorboard` of the run folder; those of steps that a resumed run makes again are replaced."""

    def __init__(self, out: Path) -> None:
        """Raises RuntimeError or ImportError where tensorboard is missing."""
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter  # tensorboardX, which is enough for transformers, is not here

        self._writer_class = SummaryWriter
        self.logging_dir = str(out / "tensorboard")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.tb_writer = self._writer_class(self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)


class RunWandb(WandbCallback):
    """Files in `wandb` of the run folder, the run's settings as its configuration, one id for all its sessions."""

    def __init__(self, out: Path, settings: DistillSettings) -> None:
        """Raises RuntimeError where wandb is missing."""
        super().__init__()
        self._out = out
        self._settings = settings

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Open the run of Weights & Biases, which transformers would otherwise open with settings of its own."""
        if state.is_world_process_zero:
            import wandb

            wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=self._out.name,
                dir=self._out,
                id=_run_id(self._out / "wandb" / "betakd-run-id"),
                resume="allow",
                reinit="finish_previous",  # a process may make many runs, one after the other
                config=self._settings.model_dump(mode="json"),
            )
        super().setup(args, state, model, **kwargs)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_train_end(args, state, control, model, processing_class, **kwargs)
        if state.is_world_process_zero:
            import wandb

            wandb.finish()


def _run_id(path: Path) -> str:
    """The id under which this run is known, drawn when it is first asked for."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, uuid.uuid4().hex[:16] + "\n")
    return path.read_text(encoding="utf-8").strip()

"""Our settings in the words of transformers' Trainer."""

import logging
from pathlib import Path

import torch
from transformers import TrainingArguments

from betakd_stages.distillation.batches import StepShape
from betakd_stages.distillation.optimizers import optimizer_class_and_options, optimizer_name
from betakd_stages.settings import DistillSettings

logger = logging.getLogger(__name__)


def training_arguments(settings: DistillSettings, out: Path, shape: StepShape, num_steps: int) -> TrainingArguments:
    """The Trainer's arguments. Raises ConfigError for an optimizer that cannot be had here."""
    training = settings.training
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        run_name=out.name,
        max_steps=num_steps,
        per_device_train_batch_size=shape.batch_size,
        gradient_accumulation_steps=shape.accumulation,
        learning_rate=training.learning_rate,
        optim=optimizer_name(training.optimizer),
        warmup_steps=training.warmup,
        lr_scheduler_type=training.schedule,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        seed=settings.seed,
        data_seed=settings.seed,
        logging_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
    )
    optimizer_class_and_options(arguments)
    if arguments.n_gpu > 1:
        logger.warning(
            f"{arguments.n_gpu} GPUs are visible, one process uses one of them: start one for each "
            "(accelerate launch -m betakd_pipe distill ...)"
        )
        arguments._n_gpu = 1  # or the Trainer would split batches over them in threads
    return arguments

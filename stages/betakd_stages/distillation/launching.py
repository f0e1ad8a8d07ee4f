"""What several processes, and those who start them, must be asked for before a student trains."""

import os

from transformers.integrations import is_deepspeed_zero3_enabled

from betakd_stages.errors import ConfigError
from betakd_stages.processes import index_and_count
from betakd_stages.settings import DistillSettings
from betakd_stages.weightings import WEIGHTINGS, GradientWeighting


def require_what_processes_can(settings: DistillSettings) -> None:
    """Nothing; raises ConfigError for settings, or ways to start several processes, that do not go together.

    To be called when the Trainer's arguments have been made: they read DeepSpeed's configuration.
    """
    num_processes = index_and_count()[1]
    if num_processes == 1:
        return
    if issubclass(WEIGHTINGS[settings.weighting.name], GradientWeighting):
        raise ConfigError(
            f"weighting {settings.weighting.name} combines gradients in one process, {num_processes} were started: "
            "choose another weighting, or start one"
        )
    if _is_on("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION") != "2":
            raise ConfigError("FSDP version 1 was asked for, version 2 is supported: give accelerate --fsdp_version 2")
        if settings.adapter.kind == "qlora":
            raise ConfigError(
                "adapter qlora runs in one process or with DDP, not with FSDP: use those, or adapter lora"
            )
        if settings.training.evaluate_every_steps:
            raise ConfigError(
                "training.evaluate_every_steps is given, but with FSDP no process holds the whole student while it "
                "trains: leave it out (the accuracy is measured at the end), or use DDP"
            )
    if is_deepspeed_zero3_enabled():
        raise ConfigError("DeepSpeed ZeRO-3 was asked for, stages 1 and 2 are supported: use those, or FSDP2")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")

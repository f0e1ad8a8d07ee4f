"""transformers' optimizers by name, and the student's parameters in groups for them."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from betakd_stages.distillation.distiller import trained_parameters
from betakd_stages.errors import ConfigError
from betakd_stages.models.loading import first_line
from betakd_stages.models.parts import parameters_by_part
from betakd_stages.settings import TrainingSettings

SUPPORTED = tuple(name.value for name in OptimizerNames if not name.value.startswith("schedule_free"))
"""Schedule-free optimizers are left out: the weights they train with are not those to save."""


def optimizer_name(name: str) -> OptimizerNames:
    """transformers' own name of an optimizer. Raises ConfigError where there is none that is supported."""
    if name not in SUPPORTED:
        raise ConfigError(f"training.optimizer is {name!r}: choose {', '.join(SUPPORTED)}")
    return OptimizerNames(name)


def optimizer_class_and_options(arguments: TrainingArguments) -> tuple[Any, dict[str, Any]]:
    """The class and options of the optimizer named in `arguments`. Raises ConfigError for what it lacks here."""
    try:
        return Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"training.optimizer {OptimizerNames(arguments.optim).value} cannot be had here ({first_line(error)}): add "
            "what it needs, or leave it out"
        ) from None


def student_groups(student: PreTrainedModel, training: TrainingSettings) -> list[dict[str, Any]]:
    """The student's groups: weight decay on matrices only, and the projector's own learning rate where it has one.

    Raises ConfigError where the projector has one and nothing of it trains.
    """
    trained, rate = trained_parameters(student), training.projector_learning_rate
    if rate is None:
        return _by_decay(trained, training.weight_decay)
    projector = {id(parameter) for parameter in parameters_by_part(student)["projector"].values()}
    apart = [parameter for parameter in trained if id(parameter) in projector]
    if not apart:
        raise ConfigError(
            f"training.projector_learning_rate is {rate:g}, but no projector of model type "
            f"{student.config.model_type!r} trains: leave it out"
        )
    rest = [parameter for parameter in trained if id(parameter) not in projector]
    groups = [{**group, "lr": rate} for group in _by_decay(apart, training.weight_decay)]
    return [*_by_decay(rest, training.weight_decay), *groups]


def _by_decay(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    plain = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]

"""The student as it trains: loaded, frozen where it does not train, with adapters if asked for."""

from dataclasses import replace

from betakd_stages.models.activations import checkpoint_activations
from betakd_stages.models.adapters import add_adapter, base_placement
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.models.parts import freeze
from betakd_stages.settings import DistillSettings


def load_student(settings: DistillSettings) -> LoadedModel:
    """The student of these settings, ready to train.

    Raises ModelError where it cannot be loaded, ConfigError for what it has not, or what needs a missing package.
    """
    training, adapter = settings.training, settings.adapter
    placement = replace(
        base_placement(adapter, training.precision), attention=training.attention, compute=training.precision
    )
    student = load_model(settings.student, max_length=settings.max_length, placement=placement)
    freeze(student.model, train_vision_tower=training.train_vision_tower, train_projector=training.train_projector)
    add_adapter(student.model, adapter)
    if training.gradient_checkpointing:
        checkpoint_activations(student.model, vision_tower=training.train_vision_tower)
    return student

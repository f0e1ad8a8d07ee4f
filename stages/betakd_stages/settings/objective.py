"""The settings of what a student minimises, and of where the weights of its channels come from."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from betakd_stages.settings.base import Settings


def _name_only(value: Any) -> Any:
    """`fkl` is short for `{name: fkl}`."""
    return {"name": value} if isinstance(value, str) else value


class EnergySettings(Settings):
    """One energy between the teacher's and the student's output distributions."""

    name: str = Field(description="a name from the table of energies, e.g. fkl or cosine_probs")
    options: dict[str, Any] = Field(default={}, description="settings of that energy, e.g. {temperature: 2.0}")


class FeatureSettings(Settings):
    """One feature channel: the student's projected feature against the teacher's cached one."""

    name: Literal["vision", "prompt"] = Field(description="vision: projector output; prompt: last hidden state")
    options: dict[str, Any] = Field(default={}, description="settings of that channel, e.g. {focus: true}")


class ObjectiveSettings(Settings):
    """What the student minimises, before weighting."""

    cross_entropy_weight: float = Field(default=1.0, ge=0, description="weight of the labels; 0 distils only")
    energies: tuple[Annotated[EnergySettings, BeforeValidator(_name_only)], ...] = ()
    features: tuple[Annotated[FeatureSettings, BeforeValidator(_name_only)], ...] = ()
    semantics: Literal["paper", "reference"] = Field(
        default="paper", description="energies and weighting as the paper states them, or as its published code does"
    )
    reduction: Literal["sample", "token"] = Field(
        default="sample", description="mean over a sample's tokens, then over samples; or over all tokens"
    )

    @model_validator(mode="after")
    def _something_to_minimise(self) -> "ObjectiveSettings":
        if self.cross_entropy_weight == 0 and not self.energies and not self.features:
            raise ValueError("cross_entropy_weight is 0 and no energy or feature is named: nothing is left to minimise")
        return self


class WeightingSettings(Settings):
    """Where the weights beta of the channels come from."""

    name: str = Field(
        default="task",
        description="fixed, manual (measured first), task (learned scalars), instance (a network), robust (trust from "
        "the cache), gradnorm, pcgrad",
    )
    inputs: tuple[str, ...] | None = Field(
        default=None,
        description="what instance weighting sees: cached features, teacher_entropy, margin, trust, ...",
    )
    learning_rate: float = Field(
        default=0.05,
        gt=0,
        description="absolute learning rate of learned weights; one for each of several weightings, such as "
        "{task: 0.5, instance: 0.01}, where others keep the default",
    )
    options: dict[str, Any] = Field(default={}, description="settings of that weighting, e.g. {beta: 3.0} for fixed")

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_this_weighting(cls, values: Any) -> Any:
        """Recipes are for several weightings, whose learning rates differ."""
        if not isinstance(values, Mapping) or not isinstance(values.get("learning_rate"), Mapping):
            return values
        default = cls.model_fields["learning_rate"].default
        name = values.get("name", cls.model_fields["name"].default)
        return {**values, "learning_rate": values["learning_rate"].get(name, default)}

"""The settings of stage two."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from betakd_stages.settings.adapters import AdapterSettings
from betakd_stages.settings.base import MAX_LENGTH, Settings
from betakd_stages.settings.ensemble import EnsembleSettings
from betakd_stages.settings.objective import EnergySettings, ObjectiveSettings, WeightingSettings
from betakd_stages.settings.posterior import PosteriorSettings
from betakd_stages.settings.training import TrainingSettings


def listed(cache: str | Sequence[str] | None) -> tuple[str, ...]:
    """The caches that a setting names, none or more."""
    if cache is None:
        return ()
    return (cache,) if isinstance(cache, str) else tuple(cache)


class ControlSettings(Settings):
    """Controls for experiments: what a sound pipeline must lose from."""

    shuffle_records: bool = Field(
        default=False, description="give every sample another sample's teacher record: the student must get worse"
    )


class DistillSettings(Settings):
    """Stage two."""

    student: str = Field(description="folder of the student, as saved by save_pretrained")
    cache: str | tuple[str, ...] | None = Field(
        default=None, description="folder of the teacher cache, or a list of several; none: labels only, no energies"
    )
    ensemble: EnsembleSettings = EnsembleSettings()
    staging: str | None = Field(
        default=None, description="folder for shards of a cache in an object store; default: the user's cache folder"
    )
    staging_limit_gb: float | None = Field(
        default=None, gt=0, description="GB of shards kept there, all caches together; default: 68.7 (64 GiB)"
    )
    trust: str | None = Field(
        default=None, description="file of `cache trust`, for robust weighting; default: the one beside the cache"
    )
    vision_cache: str | None = Field(
        default=None, description="folder of what cache-vision wrote: pixels are not read and the tower does not run"
    )
    data: str = Field(description="NAME:SPLIT[?key=value&...], e.g. digits:transfer or llava:train.json?images=DIR")
    validation: str | None = Field(default=None, description="data specification of what to measure the student on")
    validation_cache: str | None = Field(
        default=None, description="the teacher's cache of the validation data, to measure agreement; default: cache"
    )
    targets: Literal["data", "generated"] = Field(
        default="data", description="the answers to learn, as data has them or as the cache's teacher wrote them"
    )
    on_mismatch: Literal["stop", "drop"] = Field(
        default="stop",
        description="samples whose answers, text or image differ from the cache's: stop, or drop and count",
    )
    prompts: Literal["same", "own"] = Field(
        default="same", description="the student's chat template: the cache's, or its own; answer tokens agree anyway"
    )
    max_length: int | None = Field(default=None, gt=0, description=MAX_LENGTH)
    seed: int = 0
    objective: ObjectiveSettings = ObjectiveSettings(energies=(EnergySettings(name="fkl"),))
    weighting: WeightingSettings = WeightingSettings()
    training: TrainingSettings = TrainingSettings()
    adapter: AdapterSettings = AdapterSettings()
    posterior: PosteriorSettings = PosteriorSettings()
    control: ControlSettings = ControlSettings()

    @property
    def caches(self) -> tuple[str, ...]:
        """The caches named, none or more."""
        return listed(self.cache)

    @field_validator("cache", mode="after")
    @classmethod
    def _one_is_no_list(cls, cache: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        named = listed(cache)
        if len(set(named)) < len(named):
            raise ValueError(f"a cache is named twice in {', '.join(named)}: name each once")
        return named[0] if len(named) == 1 else cache or None

    @model_validator(mode="after")
    def _what_several_caches_allow(self) -> "DistillSettings":
        if len(self.caches) < 2:
            if self.ensemble != EnsembleSettings():
                raise ValueError("ensemble says how several caches are put together: name several, or leave it out")
            return self
        if self.ensemble.combine != "mixture" and self.weighting.name in ("robust", "gradnorm", "pcgrad"):
            raise ValueError(
                f"weighting {self.weighting.name} takes the teachers as one: use ensemble.combine mixture, or another "
                "weighting"
            )
        if self.control.shuffle_records:
            raise ValueError("control.shuffle_records is for one cache: name one")
        if self.targets == "generated":
            raise ValueError("targets is generated, but teachers write different answers: name one cache")
        if self.trust is not None:
            raise ValueError("trust names one file, but each of several caches has its own beside it: leave it out")
        return self

    @model_validator(mode="after")
    def _what_they_need(self) -> "DistillSettings":
        if self.training.evaluate_every_steps and self.validation is None:
            raise ValueError("training.evaluate_every_steps is given but no data to measure on: name it as validation")
        if self.validation_cache and self.validation is None:
            raise ValueError("validation_cache is given but no data to measure on: name it as validation")
        if self.cache is None and self.targets == "generated":
            raise ValueError(
                "targets is generated but no cache is given, which holds such answers: name one (--cache DIR)"
            )
        if self.cache is None and (self.objective.energies or self.objective.features or self.control.shuffle_records):
            raise ValueError("energies, features or controls are named but no cache is given: name one (--cache DIR)")
        if self.vision_cache is not None and self.training.train_vision_tower:
            raise ValueError(
                "vision_cache is given and training.train_vision_tower is true: a tower that trains says something "
                "else at every step, leave one of them out"
            )
        return self

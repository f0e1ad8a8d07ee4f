"""The settings of `cache merge --mixture`: whose caches become one, and how much each teacher counts."""

from pydantic import Field, field_validator, model_validator

from betakd_stages.settings.base import Settings
from betakd_stages.settings.ensemble import EnsembleSettings
from betakd_stages.settings.trust import FitSettings


class MixtureSettings(Settings):
    """Which caches are mixed, and by which rule."""

    caches: tuple[str, ...] = Field(description="folders or URLs of the teachers' caches, in the order of the teachers")
    ensemble: EnsembleSettings = EnsembleSettings()
    fit: FitSettings = FitSettings()
    data: str | None = Field(
        default=None, description="the data specification, for learned weights; default: that of the first cache"
    )
    shard_samples: int = Field(default=1024, ge=1, description="samples of a shard, the unit of resuming")

    @field_validator("ensemble", mode="after")
    @classmethod
    def _one_teacher(cls, ensemble: EnsembleSettings) -> EnsembleSettings:
        if ensemble.combine != "mixture":
            raise ValueError(
                f"combine is {ensemble.combine}, but one cache is of one teacher: leave it out, or name the caches to "
                "distill"
            )
        return ensemble

    @model_validator(mode="after")
    def _what_learned_weights_alone_take(self) -> "MixtureSettings":
        given = {"data": self.data is not None, "fit": self.fit != FitSettings()}
        if self.ensemble.weighting != "learned" and any(given.values()):
            raise ValueError(
                f"{' and '.join(name for name, is_given in given.items() if is_given)} given, which only learned "
                f"weights are fitted with, but ensemble.weighting is {self.ensemble.weighting}: leave that out, or ask "
                "for them (--teacher-weighting learned)"
            )
        return self

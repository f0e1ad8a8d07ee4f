"""The settings of how a run samples the posterior around the student that it ended with."""

from pydantic import Field, model_validator

from betakd_stages.settings.base import Settings


class PosteriorSettings(Settings):
    """Langevin steps behind the run's last one, and the snapshots that are kept of them."""

    count: int = Field(default=0, ge=0, description="snapshots that are kept; 0: the posterior is not sampled")
    every_steps: int = Field(default=100, gt=0, description="steps before each snapshot")
    learning_rate: float = Field(default=1e-3, gt=0, description="of these steps, which are plain gradient descent")
    temperature: float = Field(
        default=1.0, ge=0, description="1: the posterior; below: narrower than that; 0: no noise but the batches' own"
    )
    prior_deviation: float | None = Field(
        default=None, gt=0, description="of a Gaussian prior on every weight around the trained one; default: none"
    )

    @property
    def num_steps(self) -> int:
        """All of these steps."""
        return self.count * self.every_steps

    @model_validator(mode="after")
    def _spread(self) -> "PosteriorSettings":
        if self.count == 1:
            raise ValueError("count is 1, but a spread needs at least 2 snapshots: give more, or 0 for none")
        return self

    @model_validator(mode="after")
    def _nothing_without_snapshots(self) -> "PosteriorSettings":
        # Compared with the defaults: those are all given where the settings of a run are read back.
        for name, field in type(self).model_fields.items():
            if not self.count and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but count is 0, so that no posterior is sampled: give count, or "
                    f"leave {name} out"
                )
        return self

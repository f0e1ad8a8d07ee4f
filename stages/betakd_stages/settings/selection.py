"""The settings of measurements on held-out data while a student trains."""

from pydantic import Field, model_validator

from betakd_stages.settings.base import Settings


class SelectionSettings(Settings):
    """How often the student is measured on the validation data, and what follows from it."""

    evaluate_every_steps: int | None = Field(
        default=None, gt=0, description="steps between measurements of validation accuracy; the last step is one"
    )
    keep_best: bool = Field(default=False, description="save the student that measured best, not the last one")
    patience: int | None = Field(
        default=None, gt=0, description="stop after so many measurements in a row none of which was a new best"
    )

    @model_validator(mode="after")
    def _measured_at_all(self) -> "SelectionSettings":
        if self.evaluate_every_steps is None and (self.keep_best or self.patience):
            raise ValueError(
                "keep_best or patience is given, but nothing measures the student: give evaluate_every_steps too"
            )
        return self

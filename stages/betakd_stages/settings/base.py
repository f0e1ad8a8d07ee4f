"""What every group of settings is: strict and frozen. An unknown key or a wrong type is an error."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

MAX_LENGTH = "tokens of a sample at most, a longer one is refused, never cut; default: the model's context"


class Settings(BaseModel):
    """Base of every group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1; `seed: true` is a slip all the same."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("a truth value stands where none is expected")
        return value

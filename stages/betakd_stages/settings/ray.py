"""What a task on a Ray cluster asks for."""

from pydantic import Field, field_validator

from betakd_stages.settings.base import Settings


class RaySettings(Settings):
    """Of every task that `--ray` starts. They change where and when work is done, never what comes of it."""

    num_gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of a task: whole ones, or a share of one; default: 1 where the cluster has any, else 0",
    )
    num_cpus: float = Field(default=1, gt=0, description="cores of a task, which are also its threads of OpenMP")
    max_retries: int = Field(default=3, ge=0, description="times a task is done again whose worker or node was lost")

    @field_validator("num_gpus", "num_cpus")
    @classmethod
    def _whole_above_one(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"found {value:g}, expected a whole number or a share below 1")
        return value

"""The settings of measuring a model on a benchmark."""

from pydantic import Field

from betakd_stages.settings.base import Settings


class EvaluateSettings(Settings):
    """Greedy answers on a benchmark, scored."""

    model: str = Field(description="model folder or run folder")
    benchmark: str = Field(description="NAME[:SPLIT][?key=value&...], e.g. digits")
    reference: str | None = Field(
        default=None, description="folder of the teacher's evaluation: adds the agreement with its answers"
    )
    batch_size: int = Field(default=256, gt=0)
    max_new_tokens: int = Field(default=16, gt=0)

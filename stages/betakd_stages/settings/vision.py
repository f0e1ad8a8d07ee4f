"""The settings of caching what a student's vision tower says."""

from typing import Literal

from pydantic import Field

from betakd_stages.settings.base import Settings


class CacheVisionSettings(Settings):
    """What a frozen vision tower hands to the projector, once for every distinct image."""

    student: str = Field(description="folder of the student whose tower it is, or a run folder")
    data: str = Field(description="NAME:SPLIT[?key=value&...], e.g. llava:train.json?images=DIR")
    limit: int | None = Field(default=None, gt=0, description="only the images of the first so many samples")
    exact: bool = Field(default=False, description="fp32, twice the size; else float16")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="what the tower computes in; bf16 as a run with training.precision bf16 does"
    )
    batch_size: int = Field(default=32, gt=0, description="images per forward pass")
    preparing_threads: int = Field(default=2, gt=0, description="threads that read images ahead")
    shard_images: int = Field(default=128, gt=0, description="images per shard, the unit of commit and resume")
    max_skipped: int = Field(default=0, ge=0, description="samples whose image cannot be read, before stopping")

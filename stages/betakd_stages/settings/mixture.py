"""The settings of `cache merge --mixture`: whose caches become one, and how much each teacher counts."""

from typing import Literal

from pydantic import Field

from betakd_stages.settings.trust import FitSettings


class MixtureSettings(FitSettings):
    """Which caches are mixed, and by which rule. The settings of the fit are those of learned weights."""

    caches: tuple[str, ...] = Field(description="folders or URLs of the teachers' caches, in the order of the teachers")
    teacher_weighting: Literal["uniform", "entropy", "confidence", "trust", "learned"] = Field(
        default="uniform", description="how much each teacher counts"
    )
    per_token: bool = Field(default=False, description="entropy and confidence of every token, not a sample's mean")
    entropy_scale: float = Field(default=1.0, gt=0, description="nats; weights by entropy are exp(-entropy / scale)")
    data: str | None = Field(
        default=None, description="the data specification, for learned weights; default: that of the first cache"
    )
    shard_samples: int = Field(default=1024, ge=1, description="samples of a shard, the unit of resuming")

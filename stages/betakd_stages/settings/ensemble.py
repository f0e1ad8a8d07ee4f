"""The settings of how several teachers, a cache each, are put together."""

from typing import Literal

from pydantic import Field, model_validator

from betakd_stages.settings.base import Settings


class EnsembleSettings(Settings):
    """What several caches are to a student."""

    combine: Literal["mixture", "channels", "prior"] = Field(
        default="mixture",
        description="one teacher, the mixture of all; a channel of its own for each; or the mixture of their priors",
    )
    weighting: Literal["uniform", "entropy", "confidence", "trust", "learned"] = Field(
        default="uniform",
        description="how much each counts: alike, by how sure it is, by the label's probability, by `cache trust`, or "
        "as fitted to the labels before training",
    )
    per: Literal["sample", "token"] = Field(
        default="sample", description="entropy and confidence: of a sample's tokens on average, or of each token"
    )
    entropy_scale: float = Field(default=1.0, gt=0, description="nats of entropy that divide a weight by e")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> "EnsembleSettings":
        if self.combine == "channels" and self.weighting != "uniform":
            raise ValueError(
                f"weighting is {self.weighting} but combine is channels, where each teacher has its own beta: leave "
                "one of them out"
            )
        if self.per == "token" and self.weighting not in ("entropy", "confidence"):
            raise ValueError(f"per is token, but weighting {self.weighting} knows samples only: leave it out")
        if self.entropy_scale != 1 and self.weighting != "entropy":
            raise ValueError(f"entropy_scale is given, but weighting is {self.weighting}: leave it out, or use entropy")
        return self

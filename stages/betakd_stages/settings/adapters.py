"""Groups of settings of stage two: what trains of a student's language model."""

from typing import Literal

from pydantic import Field, model_validator

from betakd_stages.settings.base import Settings


class AdapterSettings(Settings):
    """Low-rank adapters that train in place of the language model's own weights."""

    kind: Literal["none", "lora", "dora", "qlora"] = Field(
        default="none",
        description="none: the language model itself trains; lora and dora need the package peft; qlora, lora beside "
        "linear layers in 4 bits, needs bitsandbytes too",
    )
    rank: int = Field(default=16, gt=0)
    alpha: int = Field(default=32, gt=0, description="an adapter's product is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of an adapter's input, in training")
    double_quantisation: bool = Field(
        default=True,
        description="qlora: the scales of the 4-bit weights have 8 bits, not 32: 4.13 bits a weight, not 4.5",
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="linear layers of the language model: all, or a list such as [q_proj, v_proj]"
    )

    @model_validator(mode="after")
    def _some_target(self) -> "AdapterSettings":
        if not self.targets:
            raise ValueError("targets is empty: name linear layers of the language model, or leave targets out for all")
        return self

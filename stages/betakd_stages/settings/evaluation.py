"""The settings of measuring a model on benchmarks."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from betakd_stages.settings.base import Settings
from betakd_stages.settings.ray import RaySettings
from betakd_stages.settings.teacher import VllmSettings


def _as_list(value: Any) -> Any:
    """One benchmark may be written without a list."""
    return [value] if isinstance(value, str) else value


class EvaluateSettings(Settings):
    """Greedy answers on benchmarks, scored."""

    model: str = Field(description="model folder or run folder")
    benchmark: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        min_length=1, description="NAME=PATH[?key=value&...] or a list of such; or digits[:SPLIT]"
    )
    reference: str | None = Field(
        default=None, description="folder of the teacher's evaluation: adds the agreement with its answers"
    )
    cache: str | None = Field(
        default=None,
        description="cache of a teacher on the same questions, or with several benchmarks a folder with one for each: "
        "adds the distance from what the teacher says",
    )
    on_mismatch: Literal["stop", "drop"] = Field(
        default="stop", description="drop: leave questions out of the distance that the cache lacks or has otherwise"
    )
    backend: Literal["hf", "vllm"] = Field(default="hf", description="what runs the model: transformers (hf) or vLLM")
    vllm: VllmSettings = VllmSettings()
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of the model while it answers")
    batch_size: int = Field(default=32, gt=0)
    draws: int = Field(
        default=0, ge=0, description="students drawn from the run's posterior: adds credible intervals; 0: none"
    )
    interval_level: float = Field(default=0.9, gt=0, lt=1, description="what credible intervals hold of the draws")
    seed: int = Field(default=0, ge=0, description="of the draws")
    calibrate_on: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        default=(),
        description="held-out questions of a benchmark, named as that is: adds temperature scaling fitted to them",
    )
    max_new_tokens: int | None = Field(
        default=None, gt=0, description="default: 16 for digits, 1,024 for ScienceQA and MMBench, 128 for the others"
    )
    # Not in what a run remembers of its settings: it changes nothing in what is written.
    ray: RaySettings = Field(default=RaySettings(), exclude=True)

    @model_validator(mode="after")
    def _draws_as_they_can_be_had(self) -> "EvaluateSettings":
        if self.draws == 1:
            raise ValueError("draws is 1, but an interval needs at least 2: give more, or 0 for none")
        if self.draws and (self.backend, self.precision) != ("hf", "fp32"):
            raise ValueError(
                f"draws is {self.draws}, which backend hf in precision fp32 can do, found {self.backend} in "
                f"{self.precision}: leave those out, or draws"
            )
        return self

    @model_validator(mode="after")
    def _nothing_without_what_it_is_of(self) -> "EvaluateSettings":
        # Compared with the defaults: those are all given where the settings of a run are read back.
        for name, subject in (("interval_level", "draws"), ("seed", "draws"), ("on_mismatch", "cache")):
            value = getattr(self, name)
            if not getattr(self, subject) and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is {value}, but it is of {subject}, which is not given: give {subject}, or leave {name} "
                    "out"
                )
        return self

    @model_validator(mode="after")
    def _measurable(self) -> "EvaluateSettings":
        if self.cache is not None and self.backend != "hf":
            raise ValueError(
                f"cache is given with backend {self.backend}, which answers only: measure the distance with backend hf"
            )
        return self

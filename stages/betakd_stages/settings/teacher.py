"""Groups of settings of stage one: how vLLM runs a teacher, and how a teacher writes answers."""

from pydantic import Field, model_validator

from betakd_stages.settings.base import Settings


class VllmSettings(Settings):
    """How vLLM runs a teacher, where it is the backend."""

    tensor_parallel_size: int = Field(default=1, gt=0, description="GPUs that share one teacher")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="share of each GPU that vLLM may take")
    max_num_batched_tokens: int = Field(
        default=8192,
        gt=0,
        description="tokens of one step; vllm_prompt_logprobs holds a row of logits for each",
    )


class GenerationSettings(Settings):
    """How a teacher writes answers."""

    max_new_tokens: int = Field(
        default=256, gt=0, description="of an answer; a longer one is cut off there, and counted"
    )
    temperature: float = Field(default=0.0, ge=0, description="0: greedy, the most likely token; else sampled")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sampled among the likeliest tokens of that probability")
    seed: int = Field(default=0, description="of sampling; an answer depends on it, its sample and its turn only")

    @model_validator(mode="after")
    def _top_p_of_something(self) -> "GenerationSettings":
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(
                f"top_p is {self.top_p}, but temperature 0 always takes the likeliest token: give a temperature "
                "(generation.temperature=1.0), or leave top_p out"
            )
        return self

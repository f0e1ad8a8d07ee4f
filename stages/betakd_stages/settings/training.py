"""The settings of how long and how fast a student trains."""

from typing import Literal

from pydantic import Field, model_validator

from betakd_stages.settings.selection import SelectionSettings


class TrainingSettings(SelectionSettings):
    """How long and how fast."""

    steps: int | None = Field(default=None, gt=0, description="optimizer steps; excludes epochs")
    epochs: float | None = Field(default=None, gt=0, description="passes over the data; excludes steps; default 1")
    batch_size: int = Field(default=8, gt=0, description="samples per step and process")
    accumulation: int = Field(default=1, gt=0, description="batches per optimizer step; excludes global_batch_size")
    global_batch_size: int | None = Field(
        default=None, gt=0, description="samples per optimizer step of all processes; gives accumulation"
    )
    group_by: Literal["nothing", "length", "modality"] = Field(
        default="nothing", description="put samples of like length into a step; modality: and with image or without"
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        default="auto",
        description="auto: sdpa where the student has it; flash_attention_2: needs flash-attn and 16 bits",
    )
    packing: bool = Field(
        default=False, description="put a batch's samples into one row behind each other: no padding; LLaVA, MobileVLM"
    )
    data_workers: int | None = Field(
        default=None, ge=0, description="processes that prepare batches, per process; default: 4 with a GPU, 0 without"
    )
    learning_rate: float = Field(default=4e-5, gt=0)
    projector_learning_rate: float | None = Field(default=None, gt=0, description="default: learning_rate")
    optimizer: str = Field(default="adamw_torch_fused", description="a name of transformers', e.g. paged_adamw_8bit")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, ge=0, description="0: no clipping")
    train_vision_tower: bool = False
    train_projector: bool = True
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="what the student computes in; fp16, for GPUs without bf16, scales the loss"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute a layer's activations again in the backward pass: less memory, more time"
    )
    log_every_steps: int = Field(default=10, gt=0)
    probe_samples: int = Field(
        default=64, ge=0, description="samples whose weights and entropies are noted at a few moments; 0: none"
    )
    checkpoint_every_steps: int = Field(default=500, gt=0)
    report_to: tuple[str, ...] = Field(
        default=(), description="trackers that transformers knows and that shall show the run: [tensorboard, wandb]"
    )
    num_threads: int | None = Field(default=None, gt=0, description="CPU threads of torch; default: all cores")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given: keep one of them")
        return self

    @model_validator(mode="after")
    def _one_size_of_a_step(self) -> "TrainingSettings":
        if self.global_batch_size is not None and self.accumulation != 1:
            raise ValueError("accumulation and global_batch_size are both given: keep one of them")
        return self

    @model_validator(mode="after")
    def _learning_rate_of_what_trains(self) -> "TrainingSettings":
        if self.projector_learning_rate is not None and not self.train_projector:
            raise ValueError("projector_learning_rate is given, but train_projector is false: leave one of them out")
        return self

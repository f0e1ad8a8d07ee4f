"""The settings of stage one."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from betakd_stages.feature_layouts import parse_feature
from betakd_stages.settings.base import MAX_LENGTH, Settings
from betakd_stages.settings.ray import RaySettings
from betakd_stages.settings.teacher import GenerationSettings, VllmSettings


class CacheTeacherSettings(Settings):
    """Stage one."""

    teacher: str = Field(description="folder of the teacher, as saved by save_pretrained, or a run folder")
    data: str = Field(description="NAME:SPLIT[?key=value&...], e.g. digits:transfer")
    backend: Literal["hf", "vllm", "vllm_prompt_logprobs"] = Field(
        default="hf",
        description="what runs the teacher: transformers (hf); vLLM in one pass, for known versions of it; or vLLM's "
        "stable interface, which gives log probabilities at temperature 1 and no features",
    )
    vllm: VllmSettings = VllmSettings()
    limit: int | None = Field(default=None, gt=0, description="only the first so many samples")
    targets: tuple[Literal["data", "generate"], ...] = Field(
        default=("data",), description="answers to score: the data's, those the teacher writes (generate), or both"
    )
    generation: GenerationSettings = GenerationSettings()
    max_length: int | None = Field(default=None, gt=0, description=MAX_LENGTH)
    batch_size: int = Field(default=16, gt=0, description="samples per forward pass")
    bucket_window: int = Field(
        default=8, gt=0, description="batches among whose samples those of similar length go together; 1: as they come"
    )
    preparing_threads: int = Field(default=2, gt=0, description="threads that read images and tokenise ahead")
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        default="auto", description="auto: sdpa where the model has it; flash_attention_2: needs flash-attn and bf16"
    )
    device_map: Literal["single", "auto"] = Field(
        default="single", description="auto: spread over all GPUs, then the CPU, a teacher that one GPU does not hold"
    )
    quantisation: Literal["none", "int8", "int4"] = Field(
        default="none", description="of the teacher's weights while it runs; needs bitsandbytes and a GPU"
    )
    require_grounding: bool = Field(
        default=False, description="stop, rather than warn, where the teacher hardly looks at images"
    )
    shard_samples: int = Field(default=1024, gt=0, description="samples per shard, the unit of commit and resume")
    top_k: int = Field(default=64, gt=0, description="entries kept per token at most")
    top_p: float = Field(default=0.999, gt=0, le=1, description="probability the kept entries reach; 1: always top_k")
    top_p_temperature: float = Field(default=1.0, gt=0)
    temperatures: tuple[float, ...] = Field(default=(1.0, 2.0), description="of the tail's statistics; 1 among them")
    exact: bool = Field(default=False, description="fp32 and no limit on top_k, for tests and small studies")
    features: tuple[str, ...] = Field(
        default=("vision", "prompt"),
        description="vision (pooled), vision:grid:4x4 (cells of the image) or vision:tokens (all), and prompt",
    )
    feature_dtype: Literal["float16", "int8"] = Field(
        default="float16", description="int8: half the size, in groups of 64 with one scale each"
    )
    vision_focus: int = Field(
        default=0,
        ge=0,
        description="visual tokens noted per sample that the teacher attends to most; Align-KD's are 16; 0: none",
    )
    max_rejected: int = Field(default=0, ge=0, description="samples that may fail (bad image, NaN) before stopping")
    precision: Literal["fp32", "bf16"] = "fp32"
    ray: RaySettings = RaySettings()

    @field_validator("temperatures")
    @classmethod
    def _with_temperature_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        """The teacher's entropy and most energies are those at temperature 1."""
        if 1.0 not in value:
            raise ValueError(f"found {', '.join(map(str, value)) or 'none'}, expected 1 among them")
        return value

    @field_validator("features")
    @classmethod
    def _known_features(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Each at most once, whatever its layout."""
        names = [parse_feature(text)[0] for text in value]
        if len(set(names)) < len(names):
            raise ValueError(f"found {', '.join(value)}, expected each feature once")
        return value

    @field_validator("targets")
    @classmethod
    def _each_target_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """In one order, so that two ways to say the same give the same cache."""
        if not value or len(set(value)) < len(value):
            raise ValueError(f"found {', '.join(value) or 'none'}, expected data, generate or both, each once")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _generation_of_something(self) -> "CacheTeacherSettings":
        if "generate" not in self.targets and self.generation != GenerationSettings():
            raise ValueError(
                "generation says how the teacher writes answers, but targets is data: add it (--targets generate), or "
                "leave generation out"
            )
        return self

    @model_validator(mode="after")
    def _what_fits_the_features(self) -> "CacheTeacherSettings":
        if self.vision_focus and "vision:tokens" not in self.features:
            raise ValueError(
                f"vision_focus is {self.vision_focus}, but the cache holds {', '.join(self.features) or 'no feature'}: "
                "places in focus need every visual token (--features vision:tokens,prompt), or none"
            )
        if self.vision_focus and self.attention not in ("auto", "eager"):
            raise ValueError(
                f"vision_focus is {self.vision_focus} and attention {self.attention}: only eager attention hands out "
                "where the teacher looks, leave attention out"
            )
        if self.exact and self.feature_dtype != "float16":
            raise ValueError("exact stores features in fp32: leave feature_dtype out")
        return self

    @model_validator(mode="after")
    def _what_the_backend_can(self) -> "CacheTeacherSettings":
        if self.backend == "hf":
            return self
        foreign = {"attention": "auto", "device_map": "single", "quantisation": "none", "vision_focus": 0}
        for name, default in foreign.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which is for backend hf: leave it out; vLLM chooses its "
                    "attention, spreads a teacher by vllm.tensor_parallel_size and runs quantised checkpoints as such"
                )
        if self.generation.temperature > 2:
            raise ValueError(
                f"generation.temperature is {self.generation.temperature:g}, vLLM samples at 2 at most: lower it, or "
                "use backend hf"
            )
        beyond = self.temperatures != (1.0,) or self.top_p_temperature != 1 or self.features
        if self.backend == "vllm_prompt_logprobs" and beyond:
            raise ValueError(
                "backend vllm_prompt_logprobs knows the teacher at temperature 1 and no features, asked are "
                f"temperatures {', '.join(f'{value:g}' for value in self.temperatures)}, top_p_temperature "
                f"{self.top_p_temperature:g} and features {', '.join(self.features) or 'none'}: give "
                "--temperatures 1 --features '', or use backend vllm"
            )
        return self

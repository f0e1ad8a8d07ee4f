"""The settings of both stages: strict, frozen, and free of torch, so that `--help` and configuration errors are quick.

An unknown key, a wrong type or a value out of range is an error; nothing is dropped or coerced.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from betakd_stages.feature_layouts import parse_feature
from betakd_stages.selection_settings import SelectionSettings
from betakd_stages.settings_base import Settings
from betakd_stages.student_settings import AdapterSettings
from betakd_stages.teacher_settings import GenerationSettings, VllmSettings

MAX_LENGTH = "tokens of a sample at most, a longer one is refused, never cut; default: the model's context"


def _name_only(value: Any) -> Any:
    """`fkl` is short for `{name: fkl}`."""
    return {"name": value} if isinstance(value, str) else value


class EnergySettings(Settings):
    """One energy between the teacher's and the student's output distributions."""

    name: str = Field(description="a name from the table of energies, e.g. fkl or cosine_probs")
    options: dict[str, Any] = Field(default={}, description="settings of that energy, e.g. {temperature: 2.0}")


class FeatureSettings(Settings):
    """One feature channel: the student's projected feature against the teacher's cached one."""

    name: Literal["vision", "prompt"] = Field(description="vision: projector output; prompt: last hidden state")
    options: dict[str, Any] = Field(default={}, description="settings of that channel, e.g. {focus: true}")


class ObjectiveSettings(Settings):
    """What the student minimises, before weighting."""

    cross_entropy_weight: float = Field(default=1.0, ge=0, description="weight of the labels; 0 distils only")
    energies: tuple[Annotated[EnergySettings, BeforeValidator(_name_only)], ...] = ()
    features: tuple[Annotated[FeatureSettings, BeforeValidator(_name_only)], ...] = ()
    semantics: Literal["paper", "reference"] = Field(
        default="paper", description="energies and weighting as the paper states them, or as its published code does"
    )
    reduction: Literal["sample", "token"] = Field(
        default="sample", description="mean over a sample's tokens, then over samples; or over all tokens"
    )

    @model_validator(mode="after")
    def _something_to_minimise(self) -> "ObjectiveSettings":
        if self.cross_entropy_weight == 0 and not self.energies and not self.features:
            raise ValueError("cross_entropy_weight is 0 and no energy or feature is named: nothing is left to minimise")
        return self


class WeightingSettings(Settings):
    """Where the weights beta of the channels come from."""

    name: str = Field(
        default="task",
        description="fixed, manual (measured first), task (learned scalars), instance (a network), gradnorm, pcgrad",
    )
    inputs: tuple[str, ...] | None = Field(
        default=None,
        description="what instance weighting sees: cached features, teacher_entropy, margin, gold_probability, ...",
    )
    learning_rate: float = Field(default=0.05, gt=0, description="absolute learning rate of learned weights")
    options: dict[str, Any] = Field(default={}, description="settings of that weighting, e.g. {beta: 3.0} for fixed")


class TrainingSettings(SelectionSettings):
    """How long and how fast."""

    steps: int | None = Field(default=None, gt=0, description="optimizer steps; excludes epochs")
    epochs: float | None = Field(default=None, gt=0, description="passes over the data; excludes steps; default 1")
    batch_size: int = Field(default=8, gt=0, description="samples per step and process")
    accumulation: int = Field(default=1, gt=0, description="batches per optimizer step")
    learning_rate: float = Field(default=4e-5, gt=0)
    projector_learning_rate: float | None = Field(default=None, gt=0, description="default: learning_rate")
    optimizer: str = Field(default="adamw_torch_fused", description="a name of transformers', e.g. paged_adamw_8bit")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, ge=0, description="0: no clipping")
    train_vision_tower: bool = False
    train_projector: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every_steps: int = Field(default=10, gt=0)
    checkpoint_every_steps: int = Field(default=500, gt=0)
    num_threads: int | None = Field(default=None, gt=0, description="CPU threads of torch; default: all cores")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given: keep one of them")
        return self

    @model_validator(mode="after")
    def _learning_rate_of_what_trains(self) -> "TrainingSettings":
        if self.projector_learning_rate is not None and not self.train_projector:
            raise ValueError("projector_learning_rate is given, but train_projector is false: leave one of them out")
        return self


class ControlSettings(Settings):
    """Controls for experiments: what a sound pipeline must lose from."""

    shuffle_records: bool = Field(
        default=False, description="give every sample another sample's teacher record: the student must get worse"
    )


class DistillSettings(Settings):
    """Stage two."""

    student: str = Field(description="folder of the student, as saved by save_pretrained")
    cache: str | None = Field(default=None, description="folder of the teacher cache; none: labels only, no energies")
    staging: str | None = Field(
        default=None, description="folder for shards of a cache in an object store; default: the user's cache folder"
    )
    staging_limit_gb: float | None = Field(
        default=None, gt=0, description="GB of shards kept there, all caches together; default: 68.7 (64 GiB)"
    )
    data: str = Field(description="NAME:SPLIT[?key=value&...], e.g. digits:transfer or llava:train.json?images=DIR")
    validation: str | None = Field(default=None, description="data specification of what to measure the student on")
    targets: Literal["data", "generated"] = Field(
        default="data", description="the answers to learn, as data has them or as the cache's teacher wrote them"
    )
    on_mismatch: Literal["stop", "drop"] = Field(
        default="stop",
        description="samples whose answers, text or image differ from the cache's: stop, or drop and count",
    )
    prompts: Literal["same", "own"] = Field(
        default="same", description="the student's chat template: the cache's, or its own; answer tokens agree anyway"
    )
    max_length: int | None = Field(default=None, gt=0, description=MAX_LENGTH)
    seed: int = 0
    objective: ObjectiveSettings = ObjectiveSettings(energies=(EnergySettings(name="fkl"),))
    weighting: WeightingSettings = WeightingSettings()
    training: TrainingSettings = TrainingSettings()
    adapter: AdapterSettings = AdapterSettings()
    control: ControlSettings = ControlSettings()

    @model_validator(mode="after")
    def _what_they_need(self) -> "DistillSettings":
        if self.training.evaluate_every_steps and self.validation is None:
            raise ValueError("training.evaluate_every_steps is given but no data to measure on: name it as validation")
        if self.cache is None and self.targets == "generated":
            raise ValueError(
                "targets is generated but no cache is given, which holds such answers: name one (--cache DIR)"
            )
        if self.cache is None and (self.objective.energies or self.objective.features or self.control.shuffle_records):
            raise ValueError("energies, features or controls are named but no cache is given: name one (--cache DIR)")
        return self


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


class EvaluateSettings(Settings):
    """Greedy answers on a benchmark, scored."""

    model: str = Field(description="model folder or run folder")
    benchmark: str = Field(description="NAME[:SPLIT][?key=value&...], e.g. digits")
    reference: str | None = Field(
        default=None, description="folder of the teacher's evaluation: adds the agreement with its answers"
    )
    batch_size: int = Field(default=256, gt=0)
    max_new_tokens: int = Field(default=16, gt=0)

"""What both of vLLM's paths share: one engine, its errors, and the way from samples to records."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from betakd_cache import FeatureLayout, TokenRule
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.errors import ModelError
from betakd_stages.feature_layouts import parse_feature
from betakd_stages.features import feature_layout
from betakd_stages.models.loading import weights_sha256
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.settings.teacher import GenerationSettings
from betakd_stages.teachers.base import Scored
from betakd_stages.teachers.sampling import stream_seed
from betakd_stages.teachers.vllm.engine import NUM_NEW_TOKENS, Engine, EngineFailure, EngineSettings, engine_settings

NOT_FINITE = "the teacher's logits hold NaN or infinity"


class VllmTeacher(ABC):
    """A `Teacher` behind one engine of vLLM."""

    batches_itself = True
    knows_logits: bool

    def __init__(
        self, settings: CacheTeacherSettings, folder: Path, encoder: Encoder, token_rule: TokenRule, version: str
    ) -> None:
        """Raises ModelError where vLLM does not take the teacher."""
        self.encoder, self.token_rule = encoder, token_rule
        self.vocabulary_size = encoder.vocabulary_size
        self.layout_names = dict(map(parse_feature, settings.features))
        self.feature_sizes = dict.fromkeys(self.layout_names, encoder.config.get_text_config().hidden_size)
        layouts = {name: feature_layout(layout, encoder, 0) for name, layout in self.layout_names.items()}
        self.feature_layouts: Mapping[str, FeatureLayout] = {
            name: layout for name, layout in layouts.items() if not layout.is_pooled
        }
        self._settings, self._folder, self._version = settings, folder, version
        self._engine_settings = self.engine_settings(
            engine_settings(settings.precision, settings.vllm, folder, encoder)
        )
        self._engine = self._started()

    @abstractmethod
    def engine_settings(self, settings: EngineSettings) -> EngineSettings:
        """The settings with what this path adds."""

    @abstractmethod
    def prepare(self, engine: Engine) -> None:
        """Tell a new engine what it needs to know."""

    @abstractmethod
    def parameters(self, number: int, sample: EncodedSample) -> Any:
        """The SamplingParams of a sample, the `number`-th of its call."""

    @abstractmethod
    def scored(self, engine: Engine, outputs: Sequence[Any], encoded: Sequence[EncodedSample]) -> Scored:
        """The records of samples by what `Engine.run` said; those with a text for an output are left to the caller."""

    def identity(self) -> dict[str, Any]:
        """What the cache must remember: the teacher's weights and how they were run, and its encoder's identity."""
        configs = (self.encoder.config, self.encoder.config.get_text_config())
        quantisation: dict[str, Any] = next(
            (found for one in configs if (found := getattr(one, "quantization_config", None))), {}
        )
        teacher = {
            "model_type": self.encoder.config.model_type,
            "weights_sha256": weights_sha256(self._folder),
            "dtype": str(self._engine_settings.arguments["dtype"]),
            "backend": self._settings.backend,
            "vllm": self._version,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
        if quantisation:
            teacher["quantisation"] = str(quantisation.get("quant_method"))
        return {"teacher": teacher, **self.encoder.identity()}

    def score(self, encoded: Sequence[EncodedSample]) -> Scored:
        """The records of these samples.

        Where the engine fails a new one is started, and the samples are halved until the one that it fails on is found:
        that one is rejected. Raises ModelError where no engine starts any more.
        """
        fitting, refused = self._fitting(encoded)
        if not fitting:
            return Scored([], refused)
        try:
            parameters = [self.parameters(number, sample) for number, sample in enumerate(fitting)]
            outputs = self._engine.run(fitting, parameters, self.encoder.image_token_id)
            found = self.scored(self._engine, outputs, fitting)
        except EngineFailure as failure:
            self._restart(failure)
            if len(fitting) == 1:
                return Scored([], refused | {fitting[0].sample_id: str(failure)})
            middle = len(fitting) // 2
            halves = [self.score(half) for half in (fitting[:middle], fitting[middle:])]
            return Scored(
                [record for half in halves for record in half.records],
                refused | {name: reason for half in halves for name, reason in half.rejected.items()},
            )
        texts = {
            sample.sample_id: output for sample, output in zip(fitting, outputs, strict=True) if isinstance(output, str)
        }
        return Scored(found.records, refused | texts | found.rejected)

    def write(
        self,
        prompts: Sequence[EncodedSample],
        keys: Sequence[str],
        limits: Sequence[int],
        generation: GenerationSettings,
    ) -> list[list[int] | str]:
        """The ids written behind each prompt, as `base.Teacher` has it; a failing engine is met as in `score`.

        Sampled are vLLM's own draws, each request's from a seed of its own.
        """
        parameters = [self._writing(key, limit, generation) for key, limit in zip(keys, limits, strict=True)]
        try:
            outputs = self._engine.run(prompts, parameters, self.encoder.image_token_id)
        except EngineFailure as failure:
            self._restart(failure)
            if len(prompts) == 1:
                return [str(failure)]
            middle = len(prompts) // 2
            halves = [slice(None, middle), slice(middle, None)]
            return [ids for half in halves for ids in self.write(prompts[half], keys[half], limits[half], generation)]
        return [output if isinstance(output, str) else list(output.outputs[0].token_ids) for output in outputs]

    def _writing(self, key: str, limit: int, generation: GenerationSettings) -> Any:
        """The SamplingParams of an answer."""
        from vllm import SamplingParams

        num_rows = self.encoder.config.get_text_config().vocab_size
        forbidden = [*self.encoder.control_token_ids, *range(self.vocabulary_size, num_rows)]
        return SamplingParams(
            max_tokens=limit,
            temperature=generation.temperature,
            top_p=generation.top_p,
            seed=stream_seed(generation.seed, key, 0) & (2**63 - 1) if generation.temperature else None,
            stop_token_ids=self.encoder.end_token_ids,
            logit_bias=dict.fromkeys(forbidden, -math.inf),
            detokenize=False,
        )

    def close(self) -> None:
        """End the engine's processes and give back memory."""
        self._engine.close()

    def _fitting(self, encoded: Sequence[EncodedSample]) -> tuple[list[EncodedSample], dict[str, str]]:
        """The samples that leave room for the token that the engine writes, and why the others are refused."""
        limit = self.encoder.max_length
        room = None if limit is None else limit - NUM_NEW_TOKENS
        too_long = {
            sample.sample_id: f"it is {len(sample.input_ids)} tokens long, vLLM takes at most {room} with a context of "
            f"{limit}: backend hf takes {limit}"
            for sample in encoded
            if room is not None and len(sample.input_ids) > room
        }
        return [sample for sample in encoded if sample.sample_id not in too_long], too_long

    def _started(self) -> Engine:
        engine = Engine(self._engine_settings)
        try:
            self.prepare(engine)
        except EngineFailure as failure:
            raise ModelError(f"the engine has started and does not do what this backend asks: {failure}") from failure
        return engine

    def _restart(self, failure: EngineFailure) -> None:
        logging.getLogger(__name__).warning("%s; a new engine is started to find the sample", failure)
        self._engine.close()
        try:
            self._engine = self._started()
        except ModelError as error:
            raise ModelError(f"after a failure: {error}") from error

"""vLLM's engine, given samples as our encoders make them.

The engine gets the expanded ids and the tensors of the image, so that text and pixels are those that the transformers
backend and the students see, whatever image processing the engine would do itself.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import BatchFeature

from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.errors import ModelError
from betakd_stages.models.loading import first_line
from betakd_stages.settings import VllmSettings
from betakd_stages.teachers.vllm.plugin import END_WITH_PARENT

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
ARCHITECTURES = {"llava": "BetaKdLlavaForConditionalGeneration"}
"""Classes of ours in place of vLLM's, by the model_type of config.json: see `models`."""
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
"""Set before vLLM is imported, unless the user has."""
REQUIRED_ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one-pass backend knows the first runner
    END_WITH_PARENT: "1",
}
NUM_NEW_TOKENS = 1
"""The engine always writes at least one; it is thrown away."""


class EngineFailure(Exception):
    """The engine failed and is no more; what it says stands in the message."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine is started."""

    folder: Path
    arguments: Mapping[str, Any]

    def with_arguments(self, **arguments: Any) -> "EngineSettings":
        """The same with further arguments of vLLM's `LLM`."""
        return dataclasses.replace(self, arguments={**self.arguments, **arguments})


def engine_settings(precision: str, vllm: VllmSettings, folder: Path, encoder: Encoder) -> EngineSettings:
    """What every path has in common."""
    family = encoder.config.model_type
    overrides = {"architectures": [ARCHITECTURES[family]]} if family in ARCHITECTURES else {}
    return EngineSettings(
        folder,
        {
            "dtype": DTYPES[precision],
            "max_model_len": encoder.max_length,
            "tensor_parallel_size": vllm.tensor_parallel_size,
            "gpu_memory_utilization": vllm.gpu_memory_utilization,
            "max_num_batched_tokens": vllm.max_num_batched_tokens,
            "enable_prefix_caching": False,  # rows of a prefix found there would never be computed
            "async_scheduling": False,
            "mm_processor_cache_gb": 0,
            "limit_mm_per_prompt": {"image": 1},
            "mm_device_do_normalize": False,  # pixels come normalised; some families would do it once more
            "hf_overrides": overrides,
        },
    )


def failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What vLLM raises where it, its processes or a model in it fail, and `others`; mistakes of ours come through."""
    from vllm.exceptions import VLLMError

    return (VLLMError, RuntimeError, ValueError, OSError, *others)


class Engine:
    """One engine; after an `EngineFailure` it can only be closed."""

    def __init__(self, settings: EngineSettings) -> None:
        """Raises ModelError where vLLM does not take the teacher or the machine."""
        os.environ |= {**ENVIRONMENT, **os.environ, **REQUIRED_ENVIRONMENT}
        from vllm import LLM

        try:
            self._llm = LLM(model=str(settings.folder), **settings.arguments)
        except failures(ImportError, TypeError) as error:  # TypeError: a release without one of the arguments
            raise ModelError(
                f"vLLM does not start with the teacher in {settings.folder} ({first_line(error)}): the lines above say "
                "more; lower vllm.gpu_memory_utilization or max_length where memory is short, or use backend hf"
            ) from error
        self._engine = self._llm.llm_engine
        self._processor = self._engine.input_processor.renderer.get_mm_processor()
        self._num_requests = 0

    def run(self, encoded: Sequence[EncodedSample], parameters: Sequence[Any], image_token_id: int) -> list[Any]:
        """What the engine made of each sample: a `RequestOutput`, or a text that says why it took it not.

        `parameters` are vLLM's SamplingParams, one per sample. Raises EngineFailure.
        """
        from vllm.exceptions import VLLMClientError

        inputs = [self._input(sample, image_token_id) for sample in encoded]
        names = [str(self._num_requests + place) for place in range(len(inputs))]
        self._num_requests += len(inputs)
        outputs: dict[str, Any] = {}
        try:
            for name, content, sampling in zip(names, inputs, parameters, strict=True):
                try:
                    self._engine.add_request(name, content, sampling)
                except (ValueError, VLLMClientError) as error:  # of validation, which has both
                    outputs[name] = f"vLLM refuses it ({first_line(error)})"
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    outputs[output.request_id] = output
        except failures() as error:
            raise EngineFailure(f"vLLM fails on it ({first_line(error) or type(error).__name__})") from error
        return [outputs[name] for name in names]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of the workers returns, one item per worker. Raises EngineFailure."""
        try:
            return self._llm.collective_rpc(method, args=arguments)
        except Exception as error:  # vLLM raises `Exception` itself for a method that failed in another process
            raise EngineFailure(f"vLLM fails at {method} ({first_line(error) or type(error).__name__})") from error

    def close(self) -> None:
        """End its processes and give back memory; what is left of an engine that has failed may fail at that too."""
        try:
            self._engine.engine_core.shutdown()
        except failures() as error:
            logging.getLogger(__name__).warning("an engine of vLLM does not close (%s)", first_line(error))

    def _input(self, sample: EncodedSample, image_token_id: int) -> dict[str, Any]:
        """The sample as an input that needs no more processing."""
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

        ids = sample.input_ids.tolist()
        if not sample.image_inputs:
            return tokens_input(ids)
        inputs = BatchFeature(dict(sample.image_inputs))
        fields = self._processor._get_mm_fields_config(inputs, {})
        places = (sample.input_ids == image_token_id).nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1])
        is_image = sample.input_ids[first : last + 1] == image_token_id
        placeholder = PlaceholderRange(first, len(is_image), None if is_image.all() else is_image)
        return mm_input(
            ids,
            MultiModalKwargsItems.from_hf_inputs(inputs, fields),
            {"image": [str(sample.image_sha256)]},
            {"image": [placeholder]},
        )

"""Greedy answers by vLLM, for evaluations: the engine of the teachers, without anything of stage one."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from betakd_stages.data.sample import Sample
from betakd_stages.encoding import EncodedSample
from betakd_stages.errors import ModelError
from betakd_stages.evaluation.generation import Answer
from betakd_stages.models.loading import load_encoder, model_folder
from betakd_stages.settings import EvaluateSettings
from betakd_stages.teachers.vllm.engine import Engine, EngineFailure, engine_settings
from betakd_stages.teachers.vllm.versions import require_vllm


class VllmAnswerer:
    """A model behind one engine of vLLM."""

    def __init__(self, settings: EvaluateSettings) -> None:
        """Raises ConfigError where vLLM is missing, ModelError where it does not take the model."""
        require_vllm(settings.backend, answers_only=True)
        self._encoder = load_encoder(settings.model)
        folder = model_folder(settings.model)
        started = engine_settings(settings.precision, settings.vllm, folder, self._encoder)
        self._engine = Engine(started.with_arguments(logprobs_mode="processed_logprobs"))

    def answers(self, samples: Sequence[Sample], *, batch_size: int, max_new_tokens: int) -> Iterator[list[Answer]]:
        """As `generation.greedy_answers`. Raises ModelError where the engine does not take a sample, or fails."""
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            prompts = [self._encoder.encode_prompt(sample) for sample in batch]
            parameters = [self._parameters(prompt, max_new_tokens) for prompt in prompts]
            try:
                outputs = self._engine.run(prompts, parameters, self._encoder.image_token_id)
            except EngineFailure as failure:
                first, last = batch[0].sample_id, batch[-1].sample_id
                raise ModelError(f"samples {first} to {last}: {failure}: use backend hf") from failure
            yield [self._answer(sample, output) for sample, output in zip(batch, outputs, strict=True)]

    def close(self) -> None:
        """End the engine's processes and give back memory."""
        self._engine.close()

    def _parameters(self, prompt: EncodedSample, max_new_tokens: int) -> Any:
        from vllm import SamplingParams

        encoder = self._encoder
        room = max_new_tokens if encoder.max_length is None else encoder.max_length - len(prompt.input_ids)
        padding_rows = range(encoder.vocabulary_size, encoder.config.get_text_config().vocab_size)
        return SamplingParams(
            max_tokens=max(1, min(max_new_tokens, room)),
            temperature=0.0,
            stop_token_ids=encoder.end_token_ids,
            logit_bias=dict.fromkeys(padding_rows, -math.inf) or None,
            logprobs=0,  # of the token that is taken
            detokenize=False,
        )

    def _answer(self, sample: Sample, output: Any) -> Answer:
        if isinstance(output, str):
            raise ModelError(f"sample {sample.sample_id}: {output}: use backend hf")
        made = output.outputs[0]
        text = self._encoder.tokenizer.decode(list(made.token_ids), skip_special_tokens=True)
        return Answer(text.strip(), min(1.0, math.exp(made.cumulative_logprob)))

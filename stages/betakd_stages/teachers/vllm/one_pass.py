"""The teacher that vLLM runs in one pass: every statistic and feature, as from transformers."""

from collections.abc import Sequence
from typing import Any

import safetensors.torch

from betakd_stages.encoding import EncodedSample
from betakd_stages.encoding.written import answer_spans
from betakd_stages.teachers.base import Scored
from betakd_stages.teachers.records import cut_records
from betakd_stages.teachers.vllm.engine import NUM_NEW_TOKENS, Engine, EngineSettings
from betakd_stages.teachers.vllm.teacher import NOT_FINITE, VllmTeacher
from betakd_stages.teachers.vllm.worker import EXTRA, FINITE, AnswerScoring

WORKER = f"{AnswerScoring.__module__}.{AnswerScoring.__qualname__}"


class OnePassTeacher(VllmTeacher):
    """A `Teacher` whose numbers are made in the engine's worker, where the hidden states are."""

    knows_logits = True

    def engine_settings(self, settings: EngineSettings) -> EngineSettings:
        return settings.with_arguments(worker_extension_cls=WORKER)

    def prepare(self, engine: Engine) -> None:
        layouts = {name: self.layout_names[name] for name in self.feature_sizes}
        engine.call("betakd_start", self.token_rule.to_json(), self.vocabulary_size, layouts)

    def parameters(self, number: int, sample: EncodedSample) -> Any:
        from vllm import SamplingParams

        asked = {"number": number, "answers": [list(span) for span in answer_spans(sample.labels)]}
        return SamplingParams(max_tokens=NUM_NEW_TOKENS, temperature=0.0, detokenize=False, extra_args={EXTRA: asked})

    def scored(self, engine: Engine, outputs: Sequence[Any], encoded: Sequence[EncodedSample]) -> Scored:
        numbers, content = next((found for found in engine.call("betakd_collect") if found[0]), ([], b""))
        if not numbers:
            return Scored([], {})
        columns = safetensors.torch.load(bytes(content))
        samples = [encoded[number] for number in numbers]
        token_counts = [len(sample.answer_ids) for sample in samples]
        features: list[dict[str, Any]] = [{} for _ in samples]
        for name in [name for name in columns if "." in name]:
            feature, _, place = name.partition(".")
            features[int(place)][feature] = columns.pop(name)
        finite = [bool(part.all()) for part in columns.pop(FINITE).split(token_counts)]
        records = cut_records(columns, token_counts, samples, features, [[] for _ in samples])
        return Scored(
            [record for record, good in zip(records, finite, strict=True) if good],
            {sample.sample_id: NOT_FINITE for sample, good in zip(samples, finite, strict=True) if not good},
        )

"""The teacher that vLLM's stable interface gives: log probabilities of the most likely tokens at every position."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from betakd_stages.encoding import EncodedSample
from betakd_stages.encoding.written import answer_spans
from betakd_stages.targets import TeacherTargets
from betakd_stages.teachers.base import Scored
from betakd_stages.teachers.records import cut_records, flat_columns
from betakd_stages.teachers.vllm.engine import NUM_NEW_TOKENS, Engine, EngineSettings
from betakd_stages.teachers.vllm.teacher import NOT_FINITE, VllmTeacher


class PromptLogProbabilitiesTeacher(VllmTeacher):
    """A `Teacher` without features, logits or temperatures other than 1.

    The engine normalises over all rows of the head; entries of padding rows that are among the most likely are left
    out, and their mass with them.
    """

    knows_logits = False

    @property
    def num_entries(self) -> int:
        """How many log probabilities are asked for at each position."""
        return min(self.token_rule.top_k, self.vocabulary_size)

    def engine_settings(self, settings: EngineSettings) -> EngineSettings:
        return settings.with_arguments(max_logprobs=self.num_entries, logprobs_mode="raw_logprobs")

    def prepare(self, engine: Engine) -> None:
        pass

    def parameters(self, number: int, sample: EncodedSample) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=NUM_NEW_TOKENS,
            temperature=0.0,
            prompt_logprobs=self.num_entries,
            flat_logprobs=True,  # as objects per entry they cost more than the teacher
            detokenize=False,
        )

    def scored(self, engine: Engine, outputs: Sequence[Any], encoded: Sequence[EncodedSample]) -> Scored:
        records, rejected = [], {}
        for output, sample in zip(outputs, encoded, strict=True):
            if isinstance(output, str):
                continue
            positions = [place for start, stop in answer_spans(sample.labels) for place in range(start, stop)]
            ids, values = answer_rows(output.prompt_logprobs, positions, self.num_entries)
            if not np.isfinite(values[:, :2]).all():
                rejected[sample.sample_id] = NOT_FINITE
                continue
            targets = TeacherTargets.from_log_probabilities(
                torch.from_numpy(ids[:, 1:]),
                torch.from_numpy(values[:, 1:]),
                torch.from_numpy(ids[:, 0]),
                torch.from_numpy(values[:, 0]),
                top_p=None if self.token_rule.top_p == 1 else self.token_rule.top_p,
                vocabulary_size=self.vocabulary_size,
            )
            records += cut_records(flat_columns(targets), [len(positions)], [sample], [{}], [[]])
        return Scored(records, rejected)


def answer_rows(flat: Any, positions: Sequence[int], num_entries: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and log probabilities `[T, 1 + K]` at these positions of vLLM's flat ones: the given token, then the most
    likely ones."""
    starts = [flat.start_indices[place] for place in positions]
    slices = [slice(start, start + 1 + num_entries) for start in starts]
    return (
        np.array([flat.token_ids[part] for part in slices], np.int64),
        np.array([flat.logprobs[part] for part in slices], np.float64),
    )

"""A teacher writes answers: turn by turn, each behind its own earlier ones, as ids that are then scored as they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from betakd_stages.caching.written_rows import ANSWER_LENGTHS, length_text
from betakd_stages.data.asked import is_asked
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.encoding.written import WrittenAnswer, answer_spans, with_answers
from betakd_stages.settings.teacher import GenerationSettings
from betakd_stages.teachers.base import Teacher


@dataclass(frozen=True, slots=True)
class Filled:
    """A batch whose open answers are written."""

    batch: list[EncodedSample]
    columns: Mapping[str, Mapping[str, str]]
    """By sample id, what the rows of records get beside the others."""
    rejected: Mapping[str, str]
    """By sample id, why an answer could not be written; those samples are not in the batch."""


class AnswerWriter:
    """Fills the open answers of samples (`data.asked`) with what a teacher writes."""

    def __init__(self, teacher: Teacher, encoder: Encoder, generation: GenerationSettings) -> None:
        self._teacher, self._generation = teacher, generation
        self._end_token_ids = frozenset(encoder.end_token_ids)
        # An engine that scores by continuing needs room for a token of its own.
        self._max_length = math.inf if encoder.max_length is None else encoder.max_length - 1

    def fill(self, batch: Sequence[EncodedSample]) -> Filled:
        """The batch with open answers written; samples without open answers are what they were."""
        open_samples = [sample for sample in batch if is_asked(sample.sample_id)]
        answers, rejected = self._answers(open_samples)
        return Filled(
            [
                with_answers(sample, answers[sample.sample_id]) if sample.sample_id in answers else sample
                for sample in batch
                if sample.sample_id not in rejected
            ],
            {
                sample_id: {ANSWER_LENGTHS: length_text([(len(answer.ids), answer.is_cut) for answer in written])}
                for sample_id, written in answers.items()
            },
            rejected,
        )

    def _answers(self, samples: Sequence[EncodedSample]) -> tuple[dict[str, list[WrittenAnswer]], dict[str, str]]:
        """By sample id the answers, written a turn of all samples that have it at a time, or why there are none."""
        answers: dict[str, list[WrittenAnswer]] = {sample.sample_id: [] for sample in samples}
        rejected: dict[str, str] = {}
        num_turns = {sample.sample_id: len(answer_spans(sample.labels)) for sample in samples}
        for turn in range(max(num_turns.values(), default=0)):
            asked = [one for one in samples if turn < num_turns[one.sample_id] and one.sample_id not in rejected]
            prompts = [with_answers(sample, answers[sample.sample_id]) for sample in asked]
            keys = [f"{sample.sample_id}/{turn}" for sample in asked]
            limits = [self._limit(sample, answers[sample.sample_id]) for sample in asked]
            written = self._teacher.write(prompts, keys, limits, self._generation)
            for sample, ids in zip(asked, written, strict=True):
                if isinstance(ids, str):
                    rejected[sample.sample_id] = ids
                    del answers[sample.sample_id]
                else:
                    is_cut = ids[-1] not in self._end_token_ids
                    answers[sample.sample_id].append(WrittenAnswer(tuple(ids), is_cut))
        return answers, rejected

    def _limit(self, sample: EncodedSample, answers: Sequence[WrittenAnswer]) -> int:
        """The most tokens of the next answer, with which and an open one for each later turn the sample still fits."""
        open_lengths = [stop - start for start, stop in answer_spans(sample.labels)]
        num_added = sum(len(answer.ids) + answer.is_cut for answer in answers) - sum(open_lengths[: len(answers)])
        room = self._max_length - len(sample.input_ids) - num_added + open_lengths[len(answers)]
        # One token less, which is the end token behind an answer that is cut off.
        return int(max(1, min(self._generation.max_new_tokens, room - 1)))

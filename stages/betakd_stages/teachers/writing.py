"""A teacher writes answers: turn by turn, each behind its own earlier ones, as ids that are then scored as they are."""

import math
from collections.abc import Sequence

from betakd_stages.data.asked import is_asked
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.encoding.written import WrittenAnswer, answer_spans, with_answers
from betakd_stages.teacher_settings import GenerationSettings
from betakd_stages.teachers.base import Teacher
from betakd_stages.written_rows import ANSWER_LENGTHS, length_text


class AnswerWriter:
    """Fills the open answers of samples (`data.asked`) with what a teacher writes."""

    def __init__(self, teacher: Teacher, encoder: Encoder, generation: GenerationSettings) -> None:
        self._teacher, self._generation = teacher, generation
        self._end_token_ids = frozenset(encoder.end_token_ids)
        # An engine that scores by continuing needs room for a token of its own.
        self._max_length = math.inf if encoder.max_length is None else encoder.max_length - 1

    def fill(self, batch: Sequence[EncodedSample]) -> tuple[list[EncodedSample], dict[str, dict[str, str]]]:
        """The batch with open answers written, others untouched, and by id the further columns of the records' rows."""
        open_samples = [sample for sample in batch if is_asked(sample.sample_id)]
        answers = dict(zip((sample.sample_id for sample in open_samples), self._answers(open_samples), strict=True))
        filled = [with_answers(s, answers[s.sample_id]) if s.sample_id in answers else s for s in batch]
        columns = {
            sample_id: {ANSWER_LENGTHS: length_text([(len(answer.ids), answer.is_cut) for answer in written])}
            for sample_id, written in answers.items()
        }
        return filled, columns

    def _answers(self, samples: Sequence[EncodedSample]) -> list[list[WrittenAnswer]]:
        """The answers of each sample, a turn of all samples that have it at a time."""
        answers: list[list[WrittenAnswer]] = [[] for _ in samples]
        open_lengths = [[stop - start for start, stop in answer_spans(sample.labels)] for sample in samples]
        for turn in range(max(map(len, open_lengths), default=0)):
            places = [place for place, lengths in enumerate(open_lengths) if turn < len(lengths)]
            prompts = [with_answers(samples[place], answers[place]) for place in places]
            keys = [f"{samples[place].sample_id}/{turn}" for place in places]
            limits = [self._limit(samples[place], answers[place], open_lengths[place]) for place in places]
            written = self._teacher.write(prompts, keys, limits, self._generation)
            for place, ids in zip(places, written, strict=True):
                answers[place].append(WrittenAnswer(tuple(ids), is_cut=ids[-1] not in self._end_token_ids))
        return answers

    def _limit(self, sample: EncodedSample, answers: Sequence[WrittenAnswer], open_lengths: Sequence[int]) -> int:
        """The most tokens of the next answer, with which and an open one for each later turn the sample still fits."""
        num_added = sum(len(answer.ids) + answer.is_cut for answer in answers) - sum(open_lengths[: len(answers)])
        room = self._max_length - len(sample.input_ids) - num_added + open_lengths[len(answers)]
        # One token less, which is the end token behind an answer that is cut off.
        return int(max(1, min(self._generation.max_new_tokens, room - 1)))

"""The answers that a teacher wrote, as a cache holds them: what a student learns in the place of the data's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from betakd_cache import TeacherCache
from betakd_stages.caching.written_rows import ANSWER_LENGTHS, parse_lengths
from betakd_stages.encoding.written import WrittenAnswer

CHUNK_SAMPLES = 4096


@dataclass(frozen=True, slots=True)
class CachedAnswers:
    """The answers to S samples, T tokens in all; item s are those of sample s."""

    token_ids: NDArray[np.int32]  # [T]
    bounds: NDArray[np.int64]  # [S, 2], where the tokens of each sample start and stop
    lengths: Sequence[str]  # [S], as `written_rows` has them

    def __getitem__(self, place: int) -> list[WrittenAnswer]:
        begin, stop = self.bounds[place].tolist()
        answers = []
        for length, is_cut in parse_lengths(self.lengths[place]):
            answers.append(WrittenAnswer(tuple(self.token_ids[begin : begin + length].tolist()), is_cut))
            begin += length
        assert begin == stop
        return answers

    def chosen(self, places: Sequence[int]) -> "CachedAnswers":
        """The answers to some of the samples."""
        return CachedAnswers(self.token_ids, self.bounds[places], [self.lengths[place] for place in places])


def read_answers(cache: TeacherCache, indices: NDArray[np.int64]) -> CachedAnswers:
    """The answers in the records of these indices [S], all of which the teacher wrote; in memory, 4 bytes a token."""
    token_ids, counts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for start in range(0, len(indices), CHUNK_SAMPLES):
        batch = cache.batch(indices[start : start + CHUNK_SAMPLES])
        token_ids.append(batch.token_ids().astype(np.int32))
        counts.append(np.diff(batch.token_ptr))
    stops = np.cumsum(np.concatenate(counts))
    bounds = np.stack([stops - np.concatenate(counts), stops], axis=1)
    rows = cache.rows([ANSWER_LENGTHS])[ANSWER_LENGTHS].to_pylist() if len(indices) else []
    return CachedAnswers(np.concatenate(token_ids), bounds, [rows[index] for index in indices])

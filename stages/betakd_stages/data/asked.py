"""Samples whose answers the teacher writes: their questions alone, under an id of their own."""

import dataclasses
from collections.abc import Sequence

from betakd_stages.data.sample import LazySamples, Sample, Turn
from betakd_stages.errors import DataError

SUFFIX = "#generated"
"""Behind a sample's id where its answers are the teacher's, so that a cache can hold both."""
OPEN_ANSWER = "."
"""Stands for an answer until it is written. Some text must: templates treat an empty message in ways of their own."""


def asked(sample: Sample) -> Sample:
    """The sample with every answer open. Its content hash is that of its questions: the data's answers play no part."""
    turns = tuple(Turn(turn.question, OPEN_ANSWER) for turn in sample.turns)
    return dataclasses.replace(sample, sample_id=sample.sample_id + SUFFIX, turns=turns)


def is_asked(sample_id: str) -> bool:
    """Whether an id is one of `asked`, in a cache that holds such samples at all."""
    return sample_id.endswith(SUFFIX)


def asked_samples(samples: Sequence[Sample]) -> LazySamples:
    """Every sample as `asked` makes it. Raises DataError where a sample's own id looks like one of those."""
    for sample in samples:
        if is_asked(sample.sample_id):
            raise DataError(
                f"sample {sample.sample_id}: ids that end in {SUFFIX} are those of answers that the teacher writes, "
                "rename it in the data"
            )
    return LazySamples(lambda position: asked(samples[position]), range(len(samples)))


def samples_for(samples: Sequence[Sample], targets: Sequence[str]) -> Sequence[Sample]:
    """The samples once for every target, one target after the other: as they are for "data", asked for "generate"."""
    by_target = [samples if target == "data" else asked_samples(samples) for target in targets]
    if len(by_target) == 1:
        return by_target[0]
    return LazySamples(
        lambda position: by_target[position // len(samples)][position % len(samples)],
        range(len(samples) * len(targets)),
    )

"""Two simulated teachers of the same questions, each right where it is planted so, and their caches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.cache.records import record_of, write_cache

from betakd_cache import TeacherCache, TokenRule
from betakd_stages.data.sample import Sample, Turn

VOCABULARY = 12
NUM_LABELS = 8
RULES = (
    TokenRule(top_k=4, top_p=1.0, temperatures=(1.0,)),
    TokenRule(top_k=9, top_p=0.99, temperatures=(0.5, 1.0, 2.0)),
)
FEATURES = ({"prompt": 2}, {"vision": 3, "prompt": 5})
"""Of each teacher: nothing but the samples is the same."""


@dataclass(frozen=True, slots=True)
class Teachers:
    """S samples in groups by turns, and the caches of two teachers, which hold all or some of them."""

    samples: list[Sample]
    caches: list[TeacherCache]
    indices: NDArray[np.int64]
    """[S, 2]"""


def planted_teachers(
    folder: Path,
    knows: NDArray[np.float64],
    *,
    sides: NDArray[np.float64],
    num_groups: int = 2,
    lacks: Sequence[Sequence[int]] = ((), ()),
) -> Teachers:
    """Teachers t that are right at sample s with probability `knows` `[S, 2]`, sure of themselves everywhere.

    A fifth of the labels is wrong. The first number of a teacher's prompt feature is that of `sides` `[S]`, all others
    are noise. `lacks`: the samples that each cache does not hold.
    """
    generator = np.random.default_rng(0)
    num_samples = len(knows)
    truth, wrong, *said = (generator.integers(0, NUM_LABELS, num_samples) for _ in range(4))
    labels = np.where(generator.random(num_samples) < 0.2, wrong, truth)
    samples = [
        Sample(f"s{place}", None, (Turn(f"kind {place % num_groups} question {place}?", str(label)),))
        for place, label in enumerate(labels)
    ]
    caches, indices = [], np.full((num_samples, 2), -1)
    for number, other in enumerate(said):
        says = np.where(generator.random(num_samples) < knows[:, number], truth, other)
        logits = generator.normal(scale=0.3, size=(num_samples, 1, VOCABULARY))
        logits[np.arange(num_samples), 0, says] += generator.uniform(3, 6, num_samples)
        held = [place for place in range(num_samples) if place not in set(lacks[number])]
        records = []
        for place in held:
            features = {name: generator.normal(size=size).astype(np.float32) for name, size in FEATURES[number].items()}
            features["prompt"][0] = sides[place]
            records.append(record_of(f"s{place}", logits[place], labels[[place]], RULES[number], features))
        generator.shuffle(records)
        path = folder / f"teacher-{number}"
        caches.append(write_cache(path, records, RULES[number], VOCABULARY, feature_sizes=FEATURES[number]))
        indices[held, number] = caches[number].index_of([f"s{place}" for place in held])
    return Teachers(samples, caches, indices)

"""Teacher records with the sizes of real ones but random content, for benchmarks: no logits are made."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from betakd_cache.record import TeacherRecord
from betakd_cache.token_rule import TokenRule

MEAN_ENTRIES = 28
"""Entries that a top_p of 0.999 keeps on average at a mean entropy of 1 nat and a vocabulary of 32,000."""


def simulated_records(
    num_samples: int,
    *,
    mean_tokens: int = 60,
    vocabulary_size: int = 32_000,
    token_rule: TokenRule | None = None,
    feature_sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Iterator[TeacherRecord]:
    """`num_samples` records that pass every check of the writer, of 1 to `2 mean_tokens - 1` tokens."""
    rule = token_rule or TokenRule()
    generator = np.random.default_rng(seed)
    for number in range(num_samples):
        num_tokens = int(generator.integers(1, 2 * mean_tokens))
        counts = np.clip(generator.geometric(1 / MEAN_ENTRIES, num_tokens), 1, rule.top_k)
        token = np.repeat(np.arange(num_tokens), counts)
        starts = np.cumsum(counts) - counts
        rank = np.arange(len(token)) - starts[token]
        # Equal steps keep the ids of a token distinct.
        step = generator.integers(1, max(vocabulary_size // (rule.top_k + 1), 2), num_tokens)[token]
        first: NDArray[np.int64] = generator.integers(0, vocabulary_size, num_tokens)[token]
        ids = ((first + rank * step) % vocabulary_size).astype(np.int64)
        gaps = (np.log1p(rank) * generator.uniform(1, 3, num_tokens)[token]).astype(np.float32)
        grid = (num_tokens, len(rule.temperatures))
        yield TeacherRecord(
            sample_id=f"simulated/{number}",
            token_ids=ids[starts],
            entry_counts=counts,
            ids=ids,
            gaps=gaps,
            gold_gap=gaps[starts],
            tail_lse=generator.normal(-6, 1, grid).astype(np.float32),
            tail_energy=generator.uniform(8, 14, grid).astype(np.float32),
            logit_max=generator.normal(20, 3, num_tokens).astype(np.float32),
            logit_mean=generator.normal(0, 1, num_tokens).astype(np.float32),
            logit_std=generator.uniform(1, 3, num_tokens).astype(np.float32),
            features={
                name: generator.normal(size=size).astype(np.float32) for name, size in (feature_sizes or {}).items()
            },
        )

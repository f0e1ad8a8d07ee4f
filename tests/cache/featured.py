"""Records and caches of features at several places, some of them in focus."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tests.cache.records import make_records, write_cache

from betakd_cache import FeatureLayout, TeacherCache, TeacherRecord, TokenRule

VOCABULARY = 300
RULE = TokenRule(top_k=9, top_p=0.99)
EXACT = dataclasses.replace(RULE, exact=True)
NUM_PLACES, NUM_FOCUS = 6, 3
SIZES = {"vision": 150, "prompt": 5}  # two whole groups of 64 and a rest; less than one
LAYOUTS = {"vision": FeatureLayout("tokens", NUM_PLACES, NUM_FOCUS)}
SETTINGS: list[dict[str, Any]] = [
    {"rule": RULE},
    {"rule": RULE, "feature_dtype": "int8"},
    {"rule": EXACT},
]


def records_of(num_samples: int, rule: TokenRule = RULE, seed: int = 0) -> list[TeacherRecord]:
    """Records with "vision" at six places, three of them in focus; every third sample has none."""
    generator = np.random.default_rng(seed)
    records = []
    for record in make_records(num_samples, VOCABULARY, rule, seed, SIZES):
        scale = generator.uniform(0.01, 100, (NUM_PLACES, 1))
        vision = (generator.normal(size=(NUM_PLACES, SIZES["vision"])) * scale).astype(np.float32)
        focus = generator.permutation(NUM_PLACES)[:NUM_FOCUS]
        has_image = "vision" in record.features
        records.append(
            dataclasses.replace(
                record,
                features={**record.features, **({"vision": vision} if has_image else {})},
                focus={"vision": focus} if has_image else {},
            )
        )
    return records


def cache_of(path: Path | str, records: list[TeacherRecord], rule: TokenRule = RULE, **settings: Any) -> TeacherCache:
    arguments: dict[str, Any] = {"feature_sizes": SIZES, "feature_layouts": LAYOUTS, "shard_samples": 3, **settings}
    return write_cache(path, records, rule, VOCABULARY, **arguments)

"""Caches of simulated teachers of the same twelve samples, and what their rows and identities say."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.cache.records import record_of, simulated_logits, writer_for

from betakd_cache import TokenRule
from betakd_stages.ensemble.merging import MergedMixture, merge_mixture
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import MixtureSettings

VOCABULARY = 40
NUM_SAMPLES = 12
SAMPLE_IDS = [f"s{place}" for place in range(NUM_SAMPLES)]
RULE = TokenRule(top_k=6, top_p=1.0, temperatures=(0.5, 1.0, 2.0))
EXACT = TokenRule(top_k=6, top_p=1.0, temperatures=(0.5, 1.0, 2.0), exact=True)
EVERYTHING = TokenRule(top_k=VOCABULARY, top_p=1.0, temperatures=(1.0, 2.0), exact=True)
SHARED: dict[str, Any] = {
    "tokenizer": {"sha256": "t0"},
    "prompt": {"template": "p0"},
    "data": {"specification": "digits:transfer?count=12", "fingerprint": "f0", "num_samples": NUM_SAMPLES},
}


def labels_of(place: int) -> NDArray[np.int64]:
    """The answer tokens of a sample, 1 to 4 of them."""
    generator = np.random.default_rng(1000 + place)
    return generator.integers(0, VOCABULARY, 1 + place % 4)


def logits_of(teacher: int, place: int) -> NDArray[np.float64]:
    """What a teacher says at the tokens of a sample `[N, V]`."""
    return simulated_logits(np.random.default_rng([teacher, place]), len(labels_of(place)), VOCABULARY)


def write_teacher(
    path: Path,
    teacher: int,
    rule: TokenRule = RULE,
    *,
    lacks: Collection[int] = (),
    rejects: Mapping[int, str] | None = None,
    feature_sizes: Mapping[str, int] | None = None,
    identity: Mapping[str, Any] | None = None,
    row: Mapping[str, Any] | None = None,
    answers_of: int = 0,
    **settings: Any,
) -> Path:
    """A complete cache; `row` changes the row of sample 3, `answers_of` is added to every id of every answer."""
    rejects, feature_sizes = rejects or {}, feature_sizes or {}
    own = {"teacher": {"weights_sha256": f"w{teacher}"}, **SHARED, **(identity or {})}
    with writer_for(path, rule, VOCABULARY, identity=own, feature_sizes=feature_sizes, **settings) as writer:
        for place, name in enumerate(SAMPLE_IDS):
            if place in rejects:
                writer.reject(name, rejects[place])
            elif place not in lacks:
                generator = np.random.default_rng([7, teacher, place])
                features = {
                    key: generator.normal(size=size).astype(np.float16).astype(np.float32)
                    for key, size in feature_sizes.items()
                    if key != "vision" or place % 3
                }
                columns = {"content_sha256": f"c{place}", "image_sha256": f"i{place}", "category": "kind"}
                columns |= row or {} if place == 3 else {}
                labels = (labels_of(place) + answers_of) % VOCABULARY
                writer.append(record_of(name, logits_of(teacher, place), labels, rule, features, columns))
        writer.complete()
    return path


def merged(target: Path, *sources: Path, **settings: Any) -> MergedMixture:
    """What mixing these caches into one wrote; `settings` are those of the ensemble."""
    values = {"caches": [str(source) for source in sources], "ensemble": settings}
    return merge_mixture(MixtureSettings.model_validate(values), str(target), progress=SilentProgress())

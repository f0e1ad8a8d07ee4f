"""Teacher records made from logits, straight from the definitions, in float64 NumPy."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_cache import CacheWriter, TeacherCache, TeacherRecord, TokenRule, open_cache

IDENTITY: dict[str, Any] = {"teacher": {"name": "simulated", "revision": "a1"}, "prompt": {"version": 1}}
FEATURE_SIZES = {"vision": 12, "prompt": 5}


def simulated_logits(generator: np.random.Generator, num_tokens: int, vocabulary_size: int) -> NDArray[np.float64]:
    """Logits `[T, V]` of very sure and of very unsure tokens alike, exact in float32."""
    spread = generator.uniform(0.5, 4.0, (num_tokens, 1))
    logits = generator.normal(size=(num_tokens, vocabulary_size)) * spread + generator.normal(scale=5)
    return logits.astype(np.float32).astype(np.float64)


def record_of(
    sample_id: str,
    logits: NDArray[np.float64],
    gold: NDArray[np.int64],
    rule: TokenRule,
    features: Mapping[str, NDArray[np.float32]] | None = None,
    row: Mapping[str, Any] | None = None,
) -> TeacherRecord:
    """The record of one sample's logits `[T, V]` and gold ids `[T]` under `rule`."""
    ids: list[int] = []
    gaps: list[float] = []
    counts, tail_lse, tail_energy = [], [], []
    for token, target in zip(logits, gold, strict=True):
        gap = token.max() - token
        kept = kept_ids(gap, int(target), rule)
        is_rest = np.ones(len(gap), bool)
        is_rest[kept] = False
        rest = gap[is_rest]
        ids += kept.tolist()
        gaps += gap[kept].tolist()
        counts.append(len(kept))
        weights = [np.exp(-rest / temperature) for temperature in rule.temperatures]
        tail_lse.append([float(np.log(w.sum())) if len(rest) else -np.inf for w in weights])
        tail_energy.append([float((w * rest).sum() / w.sum()) if len(rest) else 0.0 for w in weights])
    single = np.float32
    return TeacherRecord(
        sample_id=sample_id,
        token_ids=gold,
        entry_counts=np.array(counts),
        ids=np.array(ids),
        gaps=np.array(gaps, single),
        gold_gap=(logits.max(axis=1) - logits[np.arange(len(gold)), gold]).astype(single),
        tail_lse=np.array(tail_lse, single),
        tail_energy=np.array(tail_energy, single),
        logit_max=logits.max(axis=1).astype(single),
        logit_mean=logits.mean(axis=1).astype(single),
        logit_std=logits.std(axis=1).astype(single),
        features=features or {},
        row=row or {},
    )


def kept_ids(gap: NDArray[np.float64], gold: int, rule: TokenRule) -> NDArray[np.int64]:
    """The ids that `rule` keeps of one token, ascending gap, the gold id among them."""
    order = np.argsort(gap)
    weights = np.exp(-gap[order] / rule.top_p_temperature)
    reached = np.cumsum(weights) / weights.sum() >= rule.top_p
    wanted = min(int(np.argmax(reached)) + 1 if reached.any() else len(gap), rule.top_k)
    kept = order[:wanted]
    if gold in kept:
        return kept
    if wanted == rule.top_k:
        kept = kept[:-1]
    return np.append(kept, gold)


def make_records(
    num_samples: int,
    vocabulary_size: int,
    rule: TokenRule,
    seed: int = 0,
    feature_sizes: Mapping[str, int] = FEATURE_SIZES,
    longest: int = 6,
) -> list[TeacherRecord]:
    """Records of 1 to `longest` tokens; every third sample has no image, so no "vision" feature."""
    generator = np.random.default_rng(seed)
    records = []
    for number in range(num_samples):
        num_tokens = int(generator.integers(1, longest + 1))
        logits = simulated_logits(generator, num_tokens, vocabulary_size)
        likely = logits.argmax(axis=1)
        anywhere = generator.integers(0, vocabulary_size, num_tokens)
        gold = np.where(generator.random(num_tokens) < 0.7, likely, anywhere)
        features = {
            name: generator.normal(size=size).astype(np.float16).astype(np.float32)
            for name, size in feature_sizes.items()
            if name != "vision" or number % 3
        }
        row = {
            "category": f"kind {number % 4}",
            "source_row": number,
            "source": None if number % 3 else "web",
        }
        records.append(record_of(f"train/{number}", logits, gold, rule, features, row))
    return records


def writer_for(path: Path | str, rule: TokenRule, vocabulary_size: int, **settings: Any) -> CacheWriter:
    """A writer with this module's identity and feature sizes unless `settings` say otherwise."""
    arguments = {"identity": IDENTITY, "feature_sizes": FEATURE_SIZES} | settings
    return CacheWriter.open(path, token_rule=rule, vocabulary_size=vocabulary_size, **arguments)


def write_cache(
    path: Path | str, records: Sequence[TeacherRecord], rule: TokenRule, vocabulary_size: int, **settings: Any
) -> TeacherCache:
    """The complete cache of these records."""
    with writer_for(path, rule, vocabulary_size, **settings) as writer:
        for record in records:
            writer.append(record)
        writer.complete()
    return open_cache(path)


ARRAY_FIELDS = (
    "token_ids",
    "entry_counts",
    "ids",
    "gaps",
    "gold_gap",
    "tail_lse",
    "tail_energy",
    "logit_max",
    "logit_mean",
    "logit_std",
)


def assert_equal_records(left: TeacherRecord, right: TeacherRecord) -> None:
    """Nothing; fails unless two records hold the same values bit for bit."""
    assert left.sample_id == right.sample_id
    for name in ARRAY_FIELDS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert left.features.keys() == right.features.keys()
    for name, feature in left.features.items():
        np.testing.assert_array_equal(feature, right.features[name], err_msg=name)
    assert left.focus.keys() == right.focus.keys()
    for name, places in left.focus.items():
        np.testing.assert_array_equal(places, right.focus[name], err_msg=name)
    assert dict(left.row) == dict(right.row)


def stored_by_definition(gaps: list[float]) -> list[float]:
    """What a reader of a compact cache finds of one token's gaps: codes are those that come nearest to the gaps."""
    steps = [round(2048 * -2 * math.log(1 - code / 255 * (1 - math.exp(-8)))) for code in range(256)]
    stored = [0]
    for rank, gap in enumerate(gaps[1:], start=1):
        units = round(gap * 2048)
        if rank <= 3:
            stored.append(min(units, 65_535))
        else:
            stored.append(stored[-1] + min(steps, key=lambda step: (abs(units - stored[-1] - step), step)))
    return [units / 2048 for units in stored]

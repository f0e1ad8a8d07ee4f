"""One cache of several that were made alike."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from betakd_cache.derivation import shard_arrays
from betakd_cache.errors import CacheError
from betakd_cache.manifest import differences
from betakd_cache.reader import TeacherCache, open_cache
from betakd_cache.writer import CacheWriter

FREE_KEY = "dataset"
"""The one key of the identity in which merged caches may differ; the merged cache lists the values of all."""


@dataclass(frozen=True, slots=True)
class Merger:
    """What `merge` wrote."""

    path: str
    sources: tuple[str, ...]
    num_samples: int
    num_tokens: int
    num_shards: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"sources": list(self.sources)}


def merge(sources: Sequence[Path | str], target: Path | str, *, overwrite: bool = False) -> Merger:
    """A new cache at `target` that holds every sample of the sources, shard by shard as stored; run again, it resumes.

    Raises CacheError where the sources differ in more than their datasets, or hold a sample twice.
    """
    caches = [open_cache(source) for source in sources]
    if not caches:
        raise CacheError("there is no cache to merge; name at least one")
    for cache in caches[1:]:
        _check_alike(caches[0], cache)
    _check_disjoint(caches)
    rules = caches[0].manifest.rules
    with CacheWriter.open_with(target, _merged_identity(caches), rules, overwrite=overwrite) as writer:
        for cache in caches:
            for start, stop in cache.shard_ranges():
                rows = cache.rows_of_shard(start)
                if rows["sample_id"][0].as_py() not in writer.stored:
                    writer.append_shard(shard_arrays(cache.batch(np.arange(start, stop)), rules), rows)
            for sample_id, reason in cache.rejected.items():
                if sample_id not in writer.stored:
                    writer.reject(sample_id, reason)
        writer.complete()
    counts = open_cache(target).manifest.counts
    return Merger(str(target), tuple(map(str, sources)), counts.num_samples, counts.num_tokens, counts.num_shards)


def _check_alike(first: TeacherCache, other: TeacherCache) -> None:
    for key, left, right in differences(first.manifest.bound(), other.manifest.bound()):
        if key.split(".")[:2] != ["identity", FREE_KEY]:
            raise CacheError(
                f"{first.location} has {key.removeprefix('identity.')} = {left}, {other.location} has {right}; "
                f"merge only caches that differ in nothing but their {FREE_KEY}"
            )


def _check_disjoint(caches: Sequence[TeacherCache]) -> None:
    held: dict[str, Path | str] = {}
    for cache in caches:
        for sample_id in (*cache.sample_ids.to_pylist(), *cache.rejected):
            if sample_id in held:
                raise CacheError(
                    f"sample {sample_id!r} is in {held[sample_id]} and in {cache.location}; derive one without it first"
                )
            held[sample_id] = cache.location


def _merged_identity(caches: Sequence[TeacherCache]) -> dict[str, Any]:
    identities = [dict(cache.manifest.identity) for cache in caches]
    datasets = [identity.get(FREE_KEY) for identity in identities]
    return identities[0] if all(value == datasets[0] for value in datasets) else identities[0] | {FREE_KEY: datasets}

"""The last step of writing: what all shards hold together goes into the manifest."""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from betakd_cache import files
from betakd_cache.access import map_array
from betakd_cache.batch import CompactBatch
from betakd_cache.errors import CacheError
from betakd_cache.feature_statistics import FeatureStatistics
from betakd_cache.journal import (
    Journal,
    JournalContent,
    Part,
    ShardEntry,
    clear_uncommitted,
    journal_paths,
    part_of,
    read_journal,
    shard_name,
)
from betakd_cache.layout import CacheRules, array_specs
from betakd_cache.manifest import MANIFEST_NAME, Counts, read_manifest
from betakd_cache.rows import read_rows

REJECTED_NAME = "rejected.parquet"
BLOCK_NUMBERS = 2**23  # 64 MiB in float64
MAX_THREADS = 8


def complete_manifest(path: Path, part: Part) -> None:
    """Write rejected.parquet and the complete manifest of a cache whose parts are all written.

    Two parts that end together may both come here and write the same bytes.
    Raises CacheError where two parts hold the same sample.
    """
    journals = {journal.name: read_journal(journal) for journal in journal_paths(path)}
    shards = [entry for content in journals.values() for entry in content.shards]
    _check_distinct(path, shards)
    temporary = path / f".tmp-complete-{part[0]}-of-{part[1]}"
    rejected = _rejected_table(list(journals.values()))
    files.replace_whole(path / REJECTED_NAME, temporary, rejected)
    manifest = read_manifest(path)
    complete = dataclasses.replace(
        manifest,
        state="complete",
        counts=Counts(
            num_samples=sum(entry.num_samples for entry in shards),
            num_tokens=sum(entry.num_tokens for entry in shards),
            num_entries=sum(entry.num_entries for entry in shards),
            num_rejected=sum(len(content.rejected) for content in journals.values()),
            num_shards=len(shards),
            size_bytes=sum(entry.size_bytes for entry in shards),
        ),
        feature_statistics=_feature_statistics(path, manifest.rules, shards),
        files={name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in [*journals, REJECTED_NAME]},
    )
    files.replace_whole(path / MANIFEST_NAME, temporary, complete.to_bytes())


def clear_abandoned_parts(path: Path) -> None:
    """Remove what killed writers of an earlier division into parts left; raises CacheError if one is still writing."""
    for journal in journal_paths(path):
        if not read_journal(journal).complete:
            part = part_of(journal)
            with contextlib.closing(Journal(path, part)) as abandoned:
                clear_uncommitted(path, shard_name(part, len(abandoned.content.shards)))


def _check_distinct(path: Path, shards: Sequence[ShardEntry]) -> None:
    if not shards:
        return
    ids = read_rows([path / f"{entry.name}.parquet" for entry in shards], ["sample_id"])["sample_id"]
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        raise CacheError(
            f"{path} holds sample {twice[0].as_py()!r} in more than one part; write it again with disjoint parts"
        )


def _rejected_table(journals: Sequence[JournalContent]) -> bytes:
    rejected = [item for content in journals for item in content.rejected.items()]
    columns = {"sample_id": [name for name, _ in rejected], "reason": [reason for _, reason in rejected]}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, pa.schema([("sample_id", pa.string()), ("reason", pa.string())])), buffer)
    return buffer.getvalue().to_pybytes()


def _feature_statistics(path: Path, rules: CacheRules, shards: Sequence[ShardEntry]) -> dict[str, FeatureStatistics]:
    """The statistics of the features as a reader sees them, one block of samples in memory of each thread at a time.

    Merged in the order of the shards, so that they do not depend on how many threads there are.
    """
    statistics = {name: FeatureStatistics.of(np.zeros((0, size))) for name, size in rules.feature_sizes.items()}
    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as threads:
        for found in threads.map(functools.partial(_shard_statistics, path, rules), shards):
            statistics = {name: before.merged(found[name]) for name, before in statistics.items()}
    return statistics


def _shard_statistics(path: Path, rules: CacheRules, entry: ShardEntry) -> dict[str, FeatureStatistics]:
    arrays = {spec.name: map_array(path, entry, spec) for spec in array_specs(rules) if spec.axis == "sample"}
    nothing = np.zeros(1, np.int64)
    statistics = {}
    for name, size in rules.feature_sizes.items():
        statistics[name] = FeatureStatistics.of(np.zeros((0, size)))
        block = max(1, BLOCK_NUMBERS // (size * rules.layout(name).num_places))
        for start in range(0, entry.num_samples, block):
            part = {key: values[start : start + block] for key, values in arrays.items()}
            features = CompactBatch(part, nothing, nothing).feature(name)
            present = part[f"present/{name}"].astype(bool)
            statistics[name] = statistics[name].merged(FeatureStatistics.of(features[present]))
    return statistics

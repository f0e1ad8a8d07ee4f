"""What a cache holds, for people: counts, sizes, and how sure the teacher is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_cache.journal import journal_paths, read_journal
from betakd_cache.layout import array_specs
from betakd_cache.manifest import Counts
from betakd_cache.reader import open_cache

ENTROPY_EDGES = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, float("inf"))
KEPT_MASS_EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many samples lie in each bin; bin i reaches from `edges[i]` to `edges[i + 1]`, the last includes its end."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """A cache at a glance; it may still be open. The histograms count samples by the means of their tokens."""

    path: str
    state: str
    identity: Mapping[str, Any]
    token_rule: Mapping[str, Any]
    vocabulary_size: int
    feature_sizes: Mapping[str, int]
    feature_layouts: Mapping[str, Mapping[str, Any]]
    """Of every feature, pooled ones too, with the type its numbers are stored in."""
    statistics: tuple[str, ...]
    counts: Counts
    bytes_per_token: float
    entries_per_token: float
    entropy: Histogram
    kept_mass: Histogram

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the open end of the last bin of the entropy is null."""
        fields = asdict(self)
        fields["entropy"]["edges"] = [edge if np.isfinite(edge) else None for edge in self.entropy.edges]
        return fields


def info(path: Path | str) -> CacheInfo:
    """What the manifest, the journals and the rows of a cache say; no array is read."""
    cache = open_cache(path, allow_incomplete=True)
    manifest = cache.manifest
    journals = [read_journal(journal) for journal in journal_paths(cache.path)]
    shards = [entry for content in journals for entry in content.shards]
    counts = Counts(
        num_samples=len(cache),
        num_tokens=sum(entry.num_tokens for entry in shards),
        num_entries=sum(entry.num_entries for entry in shards),
        num_rejected=len(cache.rejected),
        num_shards=len(shards),
        size_bytes=sum(entry.size_bytes for entry in shards),
    )
    dtypes = {spec.name: spec.dtype.name for spec in array_specs(manifest.rules)}
    rows = cache.rows(["entropy", "kept_mass"]) if shards else {"entropy": np.empty(0), "kept_mass": np.empty(0)}
    return CacheInfo(
        path=str(cache.location),
        state=manifest.state,
        identity=manifest.identity,
        token_rule=manifest.token_rule.to_json(),
        vocabulary_size=manifest.vocabulary_size,
        feature_sizes=manifest.feature_sizes,
        feature_layouts={
            name: manifest.rules.layout(name).to_json() | {"dtype": dtypes[f"features/{name}"]}
            for name in manifest.feature_sizes
        },
        statistics=manifest.statistics,
        counts=counts,
        bytes_per_token=counts.size_bytes / max(counts.num_tokens, 1),
        entries_per_token=counts.num_entries / max(counts.num_tokens, 1),
        entropy=_histogram(np.asarray(rows["entropy"]), ENTROPY_EDGES),
        kept_mass=_histogram(np.asarray(rows["kept_mass"]), KEPT_MASS_EDGES),
    )


def _histogram(values: NDArray[np.float64], edges: tuple[float, ...]) -> Histogram:
    """Values beyond an end by rounding, such as an entropy of -1e-12, count into the outer bins."""
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    return Histogram(edges, tuple(counts.tolist()), float(values.mean()) if len(values) else 0.0)

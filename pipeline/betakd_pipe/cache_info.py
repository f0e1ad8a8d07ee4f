"""What a cache holds, for people and for programs."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_cache import open_cache

NUM_BINS = 10
BAR_WIDTH = 40
HISTOGRAMS = {
    "entropy": "the teacher's mean entropy per sample, nats",
    "kept_mass": "mean kept probability per sample",
}


def describe_cache(path: Path) -> dict[str, Any]:
    """Identity, rules, counts, sizes and histograms of a cache, complete or not, as plain JSON values.

    Raises CacheError.
    """
    cache = open_cache(path, allow_incomplete=True)
    manifest = cache.manifest
    rows = cache.rows(["num_tokens", *HISTOGRAMS])
    num_tokens = int(np.sum(rows["num_tokens"].to_numpy()))
    size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "path": str(path),
        "state": manifest.state,
        "num_samples": len(cache),
        "num_tokens": num_tokens,
        "num_rejected": manifest.counts.num_rejected,
        "size_bytes": size_bytes,
        "bytes_per_token": size_bytes / num_tokens if num_tokens else None,
        "vocabulary_size": manifest.vocabulary_size,
        "token_rule": manifest.token_rule.to_json(),
        "feature_sizes": dict(manifest.feature_sizes),
        "statistics": list(manifest.statistics),
        "identity": dict(manifest.identity),
        "histograms": {name: _histogram(rows[name].to_numpy()) for name in HISTOGRAMS} if len(cache) else {},
    }


def histogram_lines(name: str, histogram: dict[str, list[float]]) -> list[str]:
    """A histogram as text: a title, then one bar per bin."""
    counts, edges = histogram["counts"], histogram["edges"]
    lines = [HISTOGRAMS[name]]
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(BAR_WIDTH * count / max(counts))
        lines.append(f"  {low:8.4f} .. {high:8.4f}  {count:7d}  {bar}".rstrip())
    return lines


def _histogram(values: NDArray[np.float64]) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=NUM_BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}

"""What `betakd-pipe cache info` shows beyond what the cache's own summary says: a figure, and tokens at the cap."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAMS = {
    "entropy": "samples by the teacher's mean entropy, nats",
    "kept_mass": "samples by the mean probability kept",
}
OF_TOKENS = ("token_rule", "vocabulary_size", "statistics", "bytes_per_token", "entries_per_token", *HISTOGRAMS)
"""What a summary says of tokens, which a vision cache does not have."""
LARGEST_SHARE_AT_CAP = 0.2
SAMPLES_LOOKED_AT = 4096


def vision_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of `CacheInfo.to_json` says something about a vision cache, and the size of a row."""
    counts = {name: fields["counts"][name] for name in ("num_samples", "num_shards", "size_bytes")}
    kept = {name: value for name, value in fields.items() if name not in OF_TOKENS}
    return {**kept, "counts": counts, "bytes_per_image": counts["size_bytes"] / max(counts["num_samples"], 1)}


def share_at_cap(cache_path: Path | str) -> float:
    """The share of tokens that keep as many entries as `top_k` allows, of 4,096 samples taken evenly over the cache.

    0 where no token can miss anything by it: where every token keeps `top_k` entries by rule, or the whole vocabulary.
    """
    from betakd_cache import open_cache

    cache = open_cache(cache_path, allow_incomplete=True)
    rule = cache.manifest.token_rule
    if len(cache) == 0 or rule.top_p == 1 or rule.top_k >= cache.manifest.vocabulary_size:
        return 0.0
    places = np.linspace(0, len(cache) - 1, min(len(cache), SAMPLES_LOOKED_AT)).round().astype(np.int64)
    return float((cache.batch(places).arrays["tok_n"] == rule.top_k).mean())


def cap_warning(cache_path: Path | str, share: float, token_rule: Mapping[str, Any]) -> str | None:
    """One line where too many tokens are at the cap, else None."""
    if share <= LARGEST_SHARE_AT_CAP:
        return None
    return (
        f"{cache_path}: {share:.0%} of the tokens keep {token_rule['top_k']} entries, as many as top_k allows, and may "
        f"fall short of top_p {token_rule['top_p']}: cache with a larger top_k, or let the tail stand for the rest"
    )


def write_histograms(path: Path, histograms: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the histograms of entropy and kept mass, as in `CacheInfo.to_json`, side by side into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 2), HISTOGRAMS.items(), strict=True):
        _draw(axes, title, histograms[name])
    figure.savefig(path, format="png", dpi=120)


def _draw(axes: "Axes", title: str, histogram: Mapping[str, Any]) -> None:
    """Bins of equal width, labelled with their edges, which are not equally far apart."""
    edges = ["∞" if edge is None else f"{edge:g}" for edge in histogram["edges"]]
    axes.bar(np.arange(len(edges) - 1) + 0.5, histogram["counts"], width=0.92, color="#4477aa")
    axes.set_xticks(range(len(edges)), edges, rotation=45)
    axes.set_title(f"{title} (mean {histogram['mean']:.4g})", fontsize=10)
    axes.set_ylabel("samples")
    axes.spines[["top", "right"]].set_visible(False)

"""A plain Parquet copy of a cache with a dataset card, for `datasets.load_dataset`, polars and duckdb."""

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from betakd_cache import files
from betakd_cache.batch import CompactBatch
from betakd_cache.codec import GROUP_SIZE
from betakd_cache.errors import CacheError
from betakd_cache.layout import ArraySpec, array_specs
from betakd_cache.manifest import MANIFEST_NAME, Manifest
from betakd_cache.reader import TeacherCache, open_cache


@dataclass(frozen=True, slots=True)
class Export:
    """What `export` wrote."""

    path: str
    num_files: int
    num_samples: int
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def export(source: Path | str, target: Path | str) -> Export:
    """A folder with one Parquet row per sample: its row, and every array's bytes of that sample in a binary column.

    Binary columns hold the numbers as stored; list columns would widen them. Raises CacheError where `target` is not
    a new or empty folder.
    """
    cache, path = open_cache(source), Path(target)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CacheError(f"{path} is not empty; export to a new or an empty folder")
    files.make_directory(path / "data")
    ranges = cache.shard_ranges()
    sizes = []
    for number, (start, stop) in enumerate(ranges):
        buffer = pa.BufferOutputStream()
        pq.write_table(_table(cache, start, stop), buffer, compression="zstd")
        name = f"train-{number:05d}-of-{len(ranges):05d}.parquet"
        sizes.append(files.write(path / "data" / name, buffer.getvalue())[0])
    files.write(path / f"cache-{MANIFEST_NAME}", cache.manifest.to_bytes())
    files.write(path / "README.md", _card(cache.manifest).encode())
    return Export(str(path), len(sizes), len(cache), sum(sizes))


def _table(cache: TeacherCache, start: int, stop: int) -> pa.Table:
    batch, table = cache.batch(np.arange(start, stop)), cache.rows_of_shard(start)
    for spec in _exported_specs(cache.manifest):
        table = table.append_column(spec.name.replace("/", "_"), pa.array(_sample_bytes(batch, spec), pa.binary()))
    return table


def _sample_bytes(batch: CompactBatch, spec: ArraySpec) -> list[bytes]:
    num_samples = len(batch.token_ptr) - 1
    bounds = {"sample": np.arange(num_samples + 1), "token": batch.token_ptr, "entry": batch.entry_ptr}[spec.axis]
    data = batch.arrays[spec.name]
    return [data[start:stop].tobytes() for start, stop in itertools.pairwise(bounds)]


def _exported_specs(manifest: Manifest) -> list[ArraySpec]:
    return [spec for spec in array_specs(manifest.rules) if spec.axis != "boundary"]


def _columns(spec: ArraySpec) -> str:
    """The shape of a row as `reshape` takes it, `1` for one number."""
    return ", ".join(map(str, spec.row_shape)) or "1"


def _card(manifest: Manifest) -> str:
    rows = [
        f"| `{spec.name.replace('/', '_')}` | {spec.dtype.name}, little-endian | per {spec.axis} | {_columns(spec)} |"
        for spec in _exported_specs(manifest)
    ]
    head = ["---", "configs:", "- config_name: default", "  data_files: data/*.parquet", "---", ""]
    text = [
        "# Teacher cache",
        "",
        f"{manifest.counts.num_samples} samples, {manifest.counts.num_tokens} supervised tokens, vocabulary "
        f"{manifest.vocabulary_size}, temperatures {list(manifest.token_rule.temperatures)}; `cache-{MANIFEST_NAME}` "
        "says which teacher, prompt and data they come from.",
        "",
        "`sample_id`, `num_tokens`, `gold_nll`, `entropy` (nats), `kept_mass` and the columns of the data are plain. "
        "The others hold packed numbers, row after row: `numpy.frombuffer(value, dtype).reshape(-1, columns)`.",
        "",
        "| column | numbers | rows | columns |",
        "|---|---|---|---|",
        *rows,
        "",
        "docs/cache-format.md says how `gap` and `gap_top` become nats below the largest logit; `gold_gap` is the gold "
        "entry's, plainly. "
        f"A feature in int8 is its code times the scale of its group of {GROUP_SIZE} numbers.",
        "",
    ]
    return "\n".join(head + text)

"""Zarr v3 metadata for raw arrays of one chunk each, and their chunk files.

zarr-python could write these files, but neither with one fsync and hash per file nor without copies; it reads and
checks them (tests). The data of an array lie at offset 0 of its one chunk file, followed by their crc32c.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from betakd_cache import files

CRC_BYTES = 4


def chunk_name(array_name: str, num_dimensions: int) -> str:
    """The path, inside the group, of an array's one chunk: `ids/c/0`, `gap_top/c/0/0`."""
    return "/".join([array_name, "c", *["0"] * num_dimensions])


def write_group(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file of a new Zarr group at `path`, by its path inside the group."""
    written = {}
    for name in ["", *sorted({name.rpartition("/")[0] for name in arrays} - {""})]:
        files.make_directory(path / name)
        key = f"{name}/zarr.json".lstrip("/")
        written[key] = files.write(path / key, _json({"attributes": {}, "zarr_format": 3, "node_type": "group"}))
    for name, array in arrays.items():
        chunk = chunk_name(name, array.ndim)
        files.make_directory((path / chunk).parent)
        written[f"{name}/zarr.json"] = files.write(path / name / "zarr.json", _metadata(array.dtype, array.shape))
        checksum = google_crc32c.value(array.tobytes())
        written[chunk] = files.write(path / chunk, array, checksum.to_bytes(CRC_BYTES, "little"))
    return written


def _metadata(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The zarr.json of an array whose single chunk holds all of it, with codecs bytes and crc32c."""
    text = _metadata_template(dtype, len(shape))
    for axis, size in enumerate(shape):
        text = text.replace(b'"axis %d"' % axis, b"%d" % size)
    return text


@functools.cache
def _metadata_template(dtype: np.dtype, num_dimensions: int) -> bytes:
    """The zarr.json with a name in place of the size along each axis: to indent it anew for every shard is slow."""
    shape = [f"axis {axis}" for axis in range(num_dimensions)]
    layout = {} if dtype.itemsize == 1 else {"configuration": {"endian": "little"}}
    metadata = {
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": [{"name": "bytes", **layout}, {"name": "crc32c"}],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return _json(metadata)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()

"""Trust on disk: one Parquet file beside the cache, `CACHE.trust.parquet`, whose metadata says what it belongs to.

Beside and not inside: every file in the folder of a cache is listed and hashed there, and a cache that is complete is
never written again. One file is renamed into place whole.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from betakd_cache import TeacherCache, files
from betakd_cache.object_store import is_url
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.trust.evidence import Floats
from betakd_stages.trust.groups import Groups

SUFFIX = ".trust.parquet"
FORMAT = "betakd-trust"
FORMAT_VERSION = 1
METADATA = b"betakd_trust"


@dataclass(frozen=True, slots=True)
class TrustIdentity:
    """What a trust file was made of."""

    cache: str
    """The fingerprint of the cache."""
    data: Mapping[str, str]
    """Specification and fingerprint of the data."""
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {"cache": self.cache, "data": dict(self.data), "settings": dict(self.settings)}
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **values}


def cache_fingerprint(cache: TeacherCache) -> str:
    """The sha256 of the manifest, which holds those of all that the cache holds."""
    return hashlib.sha256(cache.manifest.to_bytes()).hexdigest()


def trust_path(cache: Path | str, named: Path | str | None = None) -> Path:
    """The file named, or the one beside the cache. Raises ConfigError where the cache is in an object store."""
    if named is not None:
        return Path(named)
    if is_url(cache):
        raise ConfigError(
            f"{cache} is in an object store, beside which no trust file is looked for: copy that cache to a local "
            "folder or, where it is the only one, name a local file (cache trust --out FILE, distill --set trust=FILE)"
        )
    folder = Path(cache).absolute()
    return folder.with_name(folder.name + SUFFIX)


def write_trust(
    path: Path, sample_ids: list[str], groups: Groups, pi: Floats, trust: Floats, identity: TrustIdentity
) -> None:
    """Write one row per sample, in one step. Raises CacheError where the file cannot be written."""
    names = pa.DictionaryArray.from_arrays(pa.array(groups.of_sample), pa.array(groups.names, pa.string()))
    table = pa.table({"sample_id": pa.array(sample_ids, pa.string()), "group": names, "pi": pi, "trust": trust})
    table = table.replace_schema_metadata({METADATA: json.dumps(identity.to_json())})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    files.make_directory(path.parent)
    files.replace_whole(path, path.with_name(f".tmp-{path.name}"), buffer.getvalue())


def read_trust(path: Path, cache: TeacherCache, data: str) -> Floats:
    """The trust `[len(cache)]` in every sample of the cache by its index, NaN where the file has none.

    Raises ConfigError where there is no file, MismatchError where it is of another kind, version or cache; `data` is
    named in the command that makes one.
    """
    command = trust_command(path, cache, data)
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}, which says how far the teacher can be believed: write it with {command}"
        )
    try:
        with pq.ParquetFile(path) as file:
            stored = (file.schema_arrow.metadata or {}).get(METADATA)
            table = file.read(columns=["sample_id", "trust"]) if stored else None
    except (OSError, pa.ArrowException) as error:
        raise MismatchError(
            f"{path} cannot be read as a trust file ({error}): write it again with {command}"
        ) from error
    if stored is None or table is None:
        raise MismatchError(f"{path} is not a trust file, it does not say of which cache: write one with {command}")
    identity = json.loads(stored)
    if (found := identity["format_version"]) != FORMAT_VERSION:
        raise MismatchError(
            f"{path} is a trust file of version {found}, this program reads version {FORMAT_VERSION}: "
            f"write it again with {command}"
        )
    own = cache_fingerprint(cache)
    if identity["cache"] != own:
        raise MismatchError(
            f"{path} was fitted to another cache (fingerprint {identity['cache'][:12]}, that of {cache.location} is "
            f"{own[:12]}): write it again with {command}"
        )
    trust = np.full(len(cache), np.nan, np.float32)
    places = pc.index_in(table["sample_id"].combine_chunks(), value_set=cache.sample_ids)
    trust[places.to_numpy()] = table["trust"].to_numpy()
    return trust


def require_trust(path: Path, trust: Floats, indices: NDArray[np.int64], cache: TeacherCache, data: str) -> None:
    """Nothing; raises MismatchError naming the first of the samples of these indices that has no trust."""
    missing = indices[np.isnan(trust[indices])]
    if len(missing):
        raise MismatchError(
            f"{path} has no trust in sample {cache.sample_ids[int(missing[0])].as_py()!r} ({len(missing)} of "
            f"{len(indices)} are missing): fit it to the labels of all of them with {trust_command(path, cache, data)}"
        )


def trust_command(path: Path, cache: TeacherCache, data: str) -> str:
    """The command that makes the file."""
    out = "" if not is_url(cache.location) and path == trust_path(cache.location) else f" --out {path}"
    return f"`betakd-pipe cache trust {cache.location} --data '{data}'{out}`"

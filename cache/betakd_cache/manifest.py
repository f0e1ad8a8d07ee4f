"""manifest.json: whose numbers a cache holds and by which rules; written first as "open", replaced as "complete".

Its last line holds the sha256 of all lines before, so that a damaged or hand-edited manifest is noticed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from betakd_cache.errors import CacheError
from betakd_cache.feature_statistics import FeatureStatistics
from betakd_cache.layout import FORMAT_NAME, FORMAT_VERSION, CacheRules, FeatureLayout, statistics_of
from betakd_cache.object_store import ObjectStore, is_url
from betakd_cache.token_rule import TokenRule

MANIFEST_NAME = "manifest.json"
HASH_KEY = b'  "sha256": '


@dataclass(frozen=True, slots=True)
class Counts:
    """What a complete cache holds; `size_bytes` is that of its shards."""

    num_samples: int = 0
    num_tokens: int = 0
    num_entries: int = 0
    num_rejected: int = 0
    num_shards: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """The identity and the rules of a cache, and, once it is complete, what it holds.

    `files` are the sha256 of the journals and of rejected.parquet by name; what the journals list is hashed there.
    """

    identity: Mapping[str, Any]
    rules: CacheRules
    state: Literal["open", "complete"] = "open"
    counts: Counts = field(default_factory=Counts)
    feature_statistics: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def token_rule(self) -> TokenRule:
        """Which entries of a token are kept."""
        return self.rules.token_rule

    @property
    def vocabulary_size(self) -> int:
        """The tokenizer's real vocabulary; every id is below it."""
        return self.rules.vocabulary_size

    @property
    def feature_sizes(self) -> Mapping[str, int]:
        """Feature name -> D."""
        return self.rules.feature_sizes

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics held; an energy that needs another is refused by name."""
        return statistics_of(self.rules)

    def bound(self) -> dict[str, Any]:
        """Everything two runs must agree on to share a cache, as plain JSON values."""
        rules = self.rules
        layouts = {name: layout.to_json() for name, layout in rules.feature_layouts.items()}
        return {
            "identity": self.identity,
            "token_rule": rules.token_rule.to_json(),
            "vocabulary_size": rules.vocabulary_size,
            "feature_sizes": dict(rules.feature_sizes),
            "logit_moments": rules.logit_moments,
            # Left out where they say nothing: caches from before there were layouts keep their bytes and identity.
            **({"feature_layouts": layouts} if layouts else {}),
            **({"feature_dtype": rules.feature_dtype} if rules.feature_dtype != "float16" else {}),
            **({} if rules.tail_energies else {"tail_energies": False}),
        }

    def to_bytes(self) -> bytes:
        """The content of manifest.json, the same for equal manifests."""
        fields = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "state": self.state,
            **self.bound(),
            "statistics": list(self.statistics),
            "counts": asdict(self.counts),
            "feature_statistics": {name: value.to_json() for name, value in self.feature_statistics.items()},
            "files": dict(self.files),
        }
        body = json.dumps(fields, indent=2).removesuffix("\n}").encode() + b",\n"
        return body + _last_lines(body)


def plain_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as it will be read back; raises CacheError where JSON cannot hold it."""
    try:
        return json.loads(json.dumps(identity, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CacheError(
            f"the identity of a cache cannot be written as JSON ({error}); "
            "give text, finite numbers, lists and mappings"
        ) from error


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of the cache at `path`, a folder or an URL.

    Raises CacheError where there is none, or one of another format.
    """
    if is_url(path):
        store = ObjectStore(path)
        return parse_manifest(store.url, store.find(MANIFEST_NAME))
    path = Path(path)
    if not path.exists():
        raise CacheError(f"{path} does not exist; give the path of a cache, or write one with cache-teacher")
    file = path / MANIFEST_NAME
    return parse_manifest(path, file.read_bytes() if file.is_file() else None)


def parse_manifest(location: Path | str, content: bytes | None) -> Manifest:
    """The manifest that is the content of manifest.json at `location`; raises CacheError as `read_manifest` does."""
    if content is None:
        raise CacheError(f"{location} is not a cache, it has no {MANIFEST_NAME}; give the path of a cache")
    file = f"{location}/{MANIFEST_NAME}"
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise CacheError(f"{file} is damaged ({error}); restore it from a copy or write the cache again") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT_NAME:
        raise CacheError(
            f"{location} is not a cache, its {MANIFEST_NAME} is of another format; give the path of a cache"
        )
    version = fields.get("format_version")
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{location} has cache format version {version}, this program reads version {FORMAT_VERSION}; "
            "install the release of betakd-pipe that wrote it"
        )
    body = content[: content.rfind(HASH_KEY)]
    if content != body + _last_lines(body):
        raise CacheError(
            f"{file} is damaged or was edited, its sha256 does not match; "
            "restore it from a copy or write the cache again"
        )
    return _from_fields(fields)


def _last_lines(body: bytes) -> bytes:
    return HASH_KEY + f'"{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def _from_fields(fields: Mapping[str, Any]) -> Manifest:
    statistics = fields["feature_statistics"]
    return Manifest(
        identity=fields["identity"],
        rules=CacheRules(
            token_rule=TokenRule.from_json(fields["token_rule"]),
            vocabulary_size=fields["vocabulary_size"],
            feature_sizes=fields["feature_sizes"],
            logit_moments=fields["logit_moments"],
            feature_layouts={
                name: FeatureLayout.from_json(layout) for name, layout in fields.get("feature_layouts", {}).items()
            },
            feature_dtype=fields.get("feature_dtype", "float16"),
            tail_energies=fields.get("tail_energies", True),
        ),
        state=fields["state"],
        counts=Counts(**fields["counts"]),
        feature_statistics={name: FeatureStatistics.from_json(value) for name, value in statistics.items()},
        files=fields["files"],
    )


def check_same(path: Path | str, stored: Manifest, wanted: Manifest) -> None:
    """Nothing; raises CacheError naming the first thing in which a run differs from the cache at `path`."""
    for key, ours, theirs in differences(stored.bound(), wanted.bound()):
        name = key.removeprefix("identity.")
        raise CacheError(
            f"{path} was written with {name} = {ours}, this run has {theirs}; "
            "use the cache's setting, write to another path, or overwrite the cache"
        )


def differences(left: Any, right: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted path, left value, right value) wherever two JSON values differ; "nothing" where a key is missing."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in dict.fromkeys((*left, *right)):
            dotted = f"{path}.{key}" if path else key
            if key in left and key in right:
                yield from differences(left[key], right[key], dotted)
            else:
                yield dotted, _shown(left, key), _shown(right, key)
    elif left != right:
        yield path, json.dumps(left), json.dumps(right)


def _shown(side: Mapping[str, Any], key: str) -> str:
    return json.dumps(side[key]) if key in side else "nothing"

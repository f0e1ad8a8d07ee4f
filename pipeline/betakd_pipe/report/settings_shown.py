"""What each method and its cache were: full configurations, their differences, and the identity of every cache."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from betakd_cache import Manifest
from betakd_pipe.config import flatten
from betakd_pipe.report.caches import read_cache
from betakd_pipe.report.records import Runs
from betakd_pipe.report.tables import Table, difference_table


@dataclass(frozen=True, slots=True)
class ShownCache:
    """A cache and the YAML of its identity, or a sentence saying that it is gone or damaged."""

    path: str
    identity: str


@dataclass(frozen=True, slots=True)
class ShownSettings:
    """Configurations of each method's first run as YAML, their differences, and the caches of all runs."""

    configurations: Mapping[str, str]
    differences: Table
    caches: tuple[ShownCache, ...]


def shown_settings(runs: Runs) -> ShownSettings:
    """The settings of these runs."""
    first = {method: of[0].settings for method, of in runs.items()}
    caches = dict.fromkeys(path for of in runs.values() for run in of for path in run.caches)
    return ShownSettings(
        configurations={method: _yaml(settings) for method, settings in first.items()},
        differences=difference_table({method: flatten(settings) for method, settings in first.items()}),
        caches=tuple(ShownCache(path, _identity(path)) for path in caches),
    )


def _identity(path: str) -> str:
    found = read_cache(path)
    return found if isinstance(found, str) else _yaml(_facts(found))


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        **manifest.identity,
        "token_rule": manifest.token_rule.to_json(),
        "vocabulary_size": manifest.vocabulary_size,
        "counts": asdict(manifest.counts),
    }


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).rstrip()

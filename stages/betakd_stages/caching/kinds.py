"""What a cache is of: what a teacher said, or what a vision tower says. No torch: the command line reads it too."""

from collections.abc import Mapping
from typing import Any

from betakd_cache import TeacherCache
from betakd_cache.object_store import is_url
from betakd_stages.errors import ConfigError, MismatchError

TOWER = "tower"
"""The name of a vision cache's only feature, and the part of its identity that no other cache has."""


def require_folder(path: str) -> None:
    """Nothing; raises ConfigError for an URL."""
    if is_url(path):
        raise ConfigError(
            f"{path} is an URL: rows of a vision cache are read at random, a megabyte each, so it belongs on a disk of "
            "the machine that trains; give a folder"
        )


def is_of_tower(identity: Mapping[str, Any]) -> bool:
    """Whether `cache-vision` wrote the cache of this identity."""
    return TOWER in identity


def require_of_teacher(cache: TeacherCache) -> None:
    """Nothing; raises MismatchError for a vision cache."""
    if is_of_tower(cache.manifest.identity):
        raise MismatchError(
            f"{cache.location} holds what a vision tower says about images, expected was what a teacher said about "
            "answers: give it as --vision-cache, and a cache of cache-teacher as --cache"
        )


def require_of_tower(cache: TeacherCache) -> None:
    """Nothing; raises MismatchError for a cache that is no vision cache."""
    if not is_of_tower(cache.manifest.identity):
        raise MismatchError(
            f"{cache.location} holds what a teacher said about answers, expected was what a vision tower says about "
            "images: give a cache of cache-vision as --vision-cache"
        )

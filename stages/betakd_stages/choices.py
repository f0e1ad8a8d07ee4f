"""Building one entry of a plain-dict registry from a name and settings a user wrote."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from betakd_stages.errors import ConfigError

Built = TypeVar("Built")


def pick(kind: str, registry: Mapping[str, Built], name: str) -> Built:
    """The entry called `name`. Raises ConfigError listing the valid names."""
    if name not in registry:
        raise ConfigError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(registry))}")
    return registry[name]


def build(
    kind: str, name: str, factory: Callable[..., Built], settings: Mapping[str, Any], fixed: Mapping[str, Any]
) -> Built:
    """`factory(**fixed, **settings)`. Raises ConfigError, listing the valid ones, for a setting it does not take."""
    valid = settings_of(factory) - set(fixed)
    for setting in settings:
        if setting not in valid:
            listed = ", ".join(sorted(valid)) or "none"
            raise ConfigError(f"{kind} {name!r} has no setting {setting!r}: its settings are {listed}")
    return factory(**fixed, **settings)


def settings_of(factory: Callable[..., Any]) -> set[str]:
    """The names of the parameters a class takes, its bases' included where it passes `**settings` on to them."""
    names: set[str] = set()
    for base in inspect.getmro(factory) if inspect.isclass(factory) else (factory,):
        function = base.__dict__.get("__init__") if inspect.isclass(base) else base
        if function is None:
            continue
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names

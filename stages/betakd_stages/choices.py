"""Building one entry of a plain-dict registry from a name and settings a user wrote."""

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

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
    """`factory(**fixed, **settings)`. Raises ConfigError for a setting it does not take, listing the valid ones, and
    for a value of another type than the parameter's."""
    valid = {setting: kinds for setting, kinds in settings_of(factory).items() if setting not in fixed}
    for setting, value in settings.items():
        if setting not in valid:
            listed = ", ".join(sorted(valid)) or "none"
            raise ConfigError(f"{kind} {name!r} has no setting {setting!r}: its settings are {listed}")
        if not _fits(value, valid[setting]):
            wanted = " or ".join(_spoken(option) for option in _options(valid[setting]))
            raise ConfigError(f"{kind} {name!r}: {setting} is {value!r}, expected {wanted}: correct its value")
    return factory(**fixed, **settings)


def settings_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """The parameters a class takes with their annotations, its bases' included where it passes `**settings` on."""
    found: dict[str, Any] = {}
    for base in inspect.getmro(factory) if inspect.isclass(factory) else (factory,):
        function = base.__dict__.get("__init__") if inspect.isclass(base) else base
        if function is None:
            continue
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.annotation)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _options(annotation: Any) -> tuple[Any, ...]:
    """The types an annotation allows, without their own parameters."""
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return tuple(get_origin(option) or option for option in options)


def _fits(value: Any, annotation: Any) -> bool:
    if isinstance(value, bool):
        return bool in _options(annotation)
    return any(isinstance(value, int | float if option is float else option) for option in _options(annotation))


def _spoken(option: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a name", type(None): "nothing"}
    return names.get(option, f"a {option.__name__.lower()}")

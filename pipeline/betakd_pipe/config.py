"""Settings from layers: defaults < recipe < configuration file < command-line flags < `--set`.

Every layer remembers where its values stood, so that an error names the file and line, flag or `--set` to change.
"""

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from betakd_pipe.recipes import recipe_path
from betakd_stages.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """Values of one source: nested mappings, what to call the source, and the line of each key where it has lines."""

    values: Mapping[str, Any]
    source: str
    lines: Mapping[Key, int] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Where `key` stood, for messages."""
        return f"{self.source}, line {self.lines[key]}" if key in self.lines else self.source


def load_settings(
    model: type[Model],
    config: Path | None,
    flags: Mapping[str, Any],
    assignments: Sequence[str] = (),
    recipe: str | None = None,
) -> Model:
    """Settings of type `model` from a recipe by name, a file, flags (dotted key to value; None: not given) and `a.b=c`
    assignments.

    Raises ConfigError: one line per fault.
    """
    layers = [] if recipe is None else [read_layer(recipe_path(recipe))]
    layers += [] if config is None else [read_layer(config)]
    layers += [Layer(nested(key, value), "the command line") for key, value in flags.items() if value is not None]
    layers += [_assignment_layer(assignment) for assignment in assignments]
    return resolve(model, layers)


def resolve(model: type[Model], layers: Sequence[Layer]) -> Model:
    """Validated settings of the layers, later ones winning key by key; lists are replaced whole."""
    values: dict[str, Any] = {}
    places: dict[Key, str] = {}
    for layer in layers:
        _merge(values, places, layer, layer.values, ())
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, details, places) for details in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def read_layer(path: Path) -> Layer:
    """The layer of a YAML file. Raises ConfigError for a missing or broken file and for duplicated keys."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a YAML file of settings: check the path")
    lines: dict[Key, int] = {}
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; expected a YAML file of settings") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}, line {line}: not YAML ({error.problem}); correct that line") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if root is None:
        return Layer({}, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {_show(values)}; expected a mapping of settings, such as `seed: 0`")
    _number_lines(root, (), lines, path)
    return Layer(values, str(path), lines)


def nested(dotted_key: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` for the key `a.b`."""
    for part in reversed(dotted_key.split(".")):
        value = {part: value}
    return value


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values: mappings and lists are opened, empty ones kept as they are."""
    entries: list[tuple[Any, Any]]
    if isinstance(values, Mapping) and values:
        entries = list(values.items())
    elif isinstance(values, list | tuple) and values:
        entries = list(enumerate(values))
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in entries:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _assignment_layer(assignment: str) -> Layer:
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {assignment}: expected KEY=VALUE with a dotted key, such as training.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {assignment}: {text!r} is not a YAML value; quote it if it is text") from None
    return Layer(nested(key, value), f"--set {assignment}")


def _number_lines(node: yaml.Node, key: Key, lines: dict[Key, int], path: Path) -> None:
    """Note the line of every key below `node`; refuse a key given twice, which YAML would let the second win."""
    if isinstance(node, yaml.MappingNode):
        for name_node, value_node in node.value:
            child = (*key, name_node.value)
            line = name_node.start_mark.line + 1
            if child in lines:
                twice = f"{_dotted(child)} is given twice (first in line {lines[child]})"
                raise ConfigError(f"{path}, line {line}: {twice}: keep one of them")
            lines[child] = line
            _number_lines(value_node, child, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*key, index)] = item.start_mark.line + 1
            _number_lines(item, (*key, index), lines, path)


def _merge(into: dict[str, Any], places: dict[Key, str], layer: Layer, values: Mapping[str, Any], prefix: Key) -> None:
    for name, value in values.items():
        key = (*prefix, name)
        if isinstance(value, Mapping) and value:
            if not isinstance(into.get(name), dict):
                into[name] = {}
            places[key] = layer.place(key)
            _merge(into[name], places, layer, value, key)
            continue
        for stale in [other for other in places if other[: len(key)] == key]:
            del places[stale]
        into[name] = value
        places[key] = layer.place(key)
        places.update({other: layer.place(other) for other in layer.lines if other[: len(key)] == key})


def _explain(model: type[BaseModel], details: ErrorDetails, places: Mapping[Key, str]) -> str:
    """One line: where it stood, the dotted key, what was found, what was expected."""
    key: Key = details["loc"]
    place = next((places[key[:end]] for end in range(len(key), 0, -1) if key[:end] in places), None)
    where = f"{place}: " if place else ""
    if details["type"] == "extra_forbidden":
        return f"{where}unknown key {_dotted(key)}; {_nearest(str(key[-1]), _settings_at(model, key[:-1]))}"
    if details["type"] == "missing":
        description = _settings_at(model, key[:-1]).model_fields[str(key[-1])].description
        remedy = "give it on the command line or in the configuration file"
        return f"{where}{_dotted(key)} is missing; expected {description or 'a value'}: {remedy}"
    if details["type"] == "value_error":
        named = f"{_dotted(key)}: " if key else ""
        return f"{where}{named}{details['msg'].removeprefix('Value error, ')}"
    mapping = details["type"] in ("model_type", "dict_type")
    expected = "a mapping" if mapping else details["msg"].removeprefix("Input should be ")
    return f"{where}{_dotted(key)}: found {_show(details['input'])}, expected {expected}"


def _nearest(name: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def _settings_at(model: type[BaseModel], key: Key) -> type[BaseModel]:
    """The group of settings that holds the keys below `key`."""
    for part in key:
        if isinstance(part, str) and part in model.model_fields:
            model = _settings_in(model.model_fields[part].annotation) or model
    return model


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := _settings_in(inner))), None)


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _show(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

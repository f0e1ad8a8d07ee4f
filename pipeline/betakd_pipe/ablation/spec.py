"""What an ablation compares: methods, seeds and a grid, as YAML; and the runs that it asks for, as settings.

    seeds: [0, 1, 2]
    student: students/seed-{seed}              # `{seed}` is filled in, in every text below
    cache: seed-{seed}/cache
    data: digits:transfer?label_noise=0.3&seed={seed}
    base: {training: {steps: 800}}             # settings of stage two that all methods share
    evaluate: {benchmark: digits}              # settings of the evaluation
    methods:
      ce: {objective: {energies: []}}
      fkl-tuned:
        set: {objective: {energies: [fkl]}, weighting: {name: fixed}}
        tune: {key: weighting.options.beta, values: [0.3, 1, 3], seed: 0, metric: validation_accuracy}
    grid: {weighting.name: [task, instance]}   # adds every combination as a method

Relative paths are relative to the folder where the command is called.
"""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from betakd_pipe.config import Layer, nested, resolve
from betakd_stages.errors import ConfigError
from betakd_stages.settings import DistillSettings, EvaluateSettings, Settings

Model = TypeVar("Model", bound=BaseModel)

_FOLDER_NAME = re.compile(r"[A-Za-z0-9_+=,-][A-Za-z0-9._+=,-]*")


class TuneSettings(Settings):
    """One setting to choose by a metric of the validation data, on one seed."""

    key: str = Field(description="dotted key of a setting of stage two, e.g. weighting.options.beta")
    values: tuple[Any, ...] = Field(min_length=1, description="the candidates")
    seed: int = Field(description="the seed whose runs are compared")
    metric: str = Field(default="validation_accuracy", description="a final metric of stage two; larger is better")


class MethodSettings(Settings):
    """One row of the table."""

    set: dict[str, Any] = Field(default={}, description="settings of stage two")
    tune: TuneSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _settings_only(cls, values: Any) -> Any:
        """`{objective: ...}` is short for `{set: {objective: ...}}`."""
        if isinstance(values, Mapping) and not values.keys() & {"set", "tune"}:
            return {"set": values}
        return values


class AblationSpec(Settings):
    """The ablation. Student, cache and data may come from flags instead."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="the seeds of stage two")
    student: str | None = Field(default=None, description="folder of the student")
    cache: str | None = Field(default=None, description="folder of the teacher cache")
    data: str | None = Field(default=None, description="NAME:SPLIT[?key=value&...]")
    base: dict[str, Any] = Field(default={}, description="settings of stage two that all methods share")
    evaluate: dict[str, Any] = Field(description="settings of the evaluation, without the model")
    methods: dict[str, MethodSettings] = Field(default={}, description="name to settings of stage two")
    grid: dict[str, tuple[Any, ...]] = Field(default={}, description="dotted key to values")

    @field_validator("seeds", "grid")
    @classmethod
    def _without_repetition(cls, value: Any, info: ValidationInfo) -> Any:
        lists = value.values() if isinstance(value, Mapping) else [value]
        for entries in lists:
            texts = [json.dumps(entry, default=str) for entry in entries]
            if len(set(texts)) != len(texts) or not texts:
                raise ValueError(f"found [{', '.join(texts)}], expected one or more different values")
        return value

    @model_validator(mode="after")
    def _usable(self) -> "AblationSpec":
        if not self.methods and not self.grid:
            raise ValueError("methods and grid are both empty: name at least one method")
        for name in self.methods:
            if not _FOLDER_NAME.fullmatch(name):
                raise ValueError(f"method {name!r} cannot name a folder: use letters, digits and . _ + = , -")
        return self


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of stage two and its evaluation, fully resolved."""

    method: str
    seed: int
    folder: Path
    settings: DistillSettings
    evaluation: EvaluateSettings

    @property
    def identity(self) -> str:
        """Equal for two runs exactly when they would do the same; where they live does not count."""
        settings = [self.settings.model_dump(mode="json"), self.evaluation.model_dump(mode="json", exclude={"model"})]
        return json.dumps(settings, sort_keys=True)


def all_methods(spec: AblationSpec) -> dict[str, MethodSettings]:
    """The methods of the spec, and one for each combination of the grid, named `key=value,key=value`."""
    methods = dict(spec.methods)
    if not spec.grid:
        return methods
    for values in itertools.product(*spec.grid.values()):
        pairs = dict(zip(spec.grid, values, strict=True))
        name = ",".join(f"{key}={short_name(value)}" for key, value in pairs.items())
        if name in methods:
            raise ConfigError(f"grid: two combinations or methods are called {name}: rename the method")
        settings: dict[str, Any] = {}
        for key, value in pairs.items():
            _set(settings, key, value)
        methods[name] = MethodSettings(set=settings)
    return methods


def candidate_name(method: str, value: Any) -> str:
    """The name of the run of `method` with one value of what it tunes."""
    return f"{method}@{short_name(value)}"


def plan_run(
    spec: AblationSpec,
    out: Path,
    method: str,
    seed: int,
    *,
    name: str | None = None,
    tuned: Mapping[str, Any] | None = None,
) -> PlannedRun:
    """The run of a method with one seed; `tuned` holds dotted keys that win over the method's settings.

    Raises ConfigError, one line per fault, naming the method.
    """
    layers = [
        Layer({key: value for key in ("student", "cache", "data") if (value := getattr(spec, key))}, "the ablation"),
        Layer(spec.base, "base"),
        Layer(all_methods(spec)[method].set, f"method {method}"),
        *(Layer(nested(key, value), f"method {method}, tune") for key, value in (tuned or {}).items()),
        Layer({"seed": seed}, "seeds"),
    ]
    folder = out / f"seed-{seed}" / "runs" / (name or method)
    return PlannedRun(
        method=name or method,
        seed=seed,
        folder=folder,
        settings=_resolve_for_seed(DistillSettings, layers, seed),
        evaluation=_resolve_for_seed(
            EvaluateSettings, [Layer(spec.evaluate, "evaluate"), Layer({"model": str(folder)}, "the ablation")], seed
        ),
    )


def short_name(value: Any) -> str:
    """A value as a part of a folder's name: `[fkl, rkl]` gives `fkl+rkl`."""
    if isinstance(value, list | tuple):
        return "+".join(short_name(entry) for entry in value) or "none"
    if isinstance(value, Mapping):
        return "_".join(f"{key}_{short_name(entry)}" for key, entry in value.items())
    return re.sub(r"[^A-Za-z0-9._-]+", "_", str(value))


def _resolve_for_seed(model: type[Model], layers: list[Layer], seed: int) -> Model:
    return resolve(model, [Layer(_fill(layer.values, seed), layer.source) for layer in layers])


def _fill(value: Any, seed: int) -> Any:
    """The value with `{seed}` filled in, in every text."""
    if isinstance(value, str):
        return value.replace("{seed}", str(seed))
    if isinstance(value, Mapping):
        return {key: _fill(entry, seed) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(entry, seed) for entry in value]
    return value


def _set(values: dict[str, Any], dotted_key: str, value: Any) -> None:
    *parents, last = dotted_key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value

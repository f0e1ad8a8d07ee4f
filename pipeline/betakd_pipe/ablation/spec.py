"""What an ablation compares: methods, seeds, axes and a grid, as YAML; and the runs that it asks for, as settings.

    recipe: digits                             # settings of stage two that come with the package, below all others
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
    axes:                                      # adds fkl-fixed, fkl-task, rkl-fixed and rkl-task
      energy: {fkl: {objective: {energies: [fkl]}}, rkl: {objective: {energies: [rkl]}}}
      weighting: {fixed: {weighting: {name: fixed}}, task: {weighting: {name: task}}}
    grid: {weighting.name: [task, instance]}   # adds every combination of plain values, named weighting.name=task
    table: {columns: {accuracy: accuracy}, gain_over: fixed}   # how table.md and table.csv look

Relative paths are relative to the folder where the command is called.
"""

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from betakd_pipe.config import Layer, nested, read_layer, resolve
from betakd_pipe.recipes import recipe_path
from betakd_stages.errors import ConfigError
from betakd_stages.settings import DistillSettings, EvaluateSettings, RaySettings, Settings

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


class TableSettings(Settings):
    """How the results are shown: one line per method, one column per figure."""

    title: str = Field(default="", description="the line above the table")
    columns: dict[str, str] = Field(
        default={"accuracy %": "accuracy"}, min_length=1, description="heading to a figure of the runs"
    )
    labels: dict[str, str] = Field(default={}, description="what to call variants and methods, where not by name")
    gain_over: str | None = Field(
        default=None, description="variant of the last axis, or method, that others are compared with"
    )
    reported: str | None = Field(default=None, description="a table of the paper whose figures stand beside ours")
    note: str = Field(default="", description="the line below the table")


class AblationSpec(Settings):
    """The ablation. Student, cache and data may come from flags instead."""

    recipe: str | None = Field(default=None, description="a recipe of stage two, over which base and methods win")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="the seeds of stage two")
    student: str | None = Field(default=None, description="folder of the student")
    cache: str | tuple[str, ...] | None = Field(default=None, description="folder of the teacher cache, or of several")
    data: str | None = Field(default=None, description="NAME:SPLIT[?key=value&...]")
    base: dict[str, Any] = Field(default={}, description="settings of stage two that all methods share")
    evaluate: dict[str, Any] = Field(description="settings of the evaluation, without the model")
    methods: dict[str, MethodSettings] = Field(default={}, description="name to settings of stage two")
    axes: dict[str, dict[str, dict[str, Any]]] = Field(default={}, description="axis to variants to settings")
    grid: dict[str, tuple[Any, ...]] = Field(default={}, description="dotted key to values")
    own_processes: bool = Field(default=False, description="no run after another in a process: its memory is its own")
    ray: RaySettings = RaySettings()
    table: TableSettings | None = Field(default=None, description="how table.md and table.csv look")

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
        if not self.methods and not self.axes and not self.grid:
            raise ValueError("methods, axes and grid are all empty: name at least one method")
        if "ray" in self.evaluate:
            raise ValueError(
                "evaluate.ray is given, but a task of an ablation is a whole run: write ray beside evaluate"
            )
        for axis, variants in self.axes.items():
            if not variants:
                raise ValueError(f"axis {axis} has no variant: name at least one")
        for name in (*self.methods, *itertools.chain(*self.axes.values())):
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
    identity: str = field(init=False, repr=False)
    """Equal for two runs exactly when they would do the same; where they live does not count."""

    def __post_init__(self) -> None:
        settings = [self.settings.model_dump(mode="json"), self.evaluation.model_dump(mode="json", exclude={"model"})]
        object.__setattr__(self, "identity", json.dumps(settings, sort_keys=True))

    @property
    def name(self) -> str:
        """What to call the run in messages."""
        return f"{self.method} seed {self.seed}"


def all_methods(spec: AblationSpec) -> dict[str, MethodSettings]:
    """The methods of the spec; one for each combination of the axes, named `variant-variant`; and one for each of the
    grid, named `key=value,key=value`.

    Raises ConfigError for two of one name.
    """
    methods = dict(spec.methods)
    for name, settings in itertools.chain(_combined_variants(spec), _combined_values(spec)):
        if name in methods:
            raise ConfigError(f"two combinations or methods are called {name}: rename one of them")
        methods[name] = MethodSettings(set=settings)
    return methods


def variants_of_methods(spec: AblationSpec) -> dict[str, tuple[str, ...]]:
    """The variants, one per axis, of each method that combines the axes."""
    if not spec.axes:
        return {}
    return {"-".join(names): names for names in itertools.product(*spec.axes.values())}


def _combined_variants(spec: AblationSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    if not spec.axes:
        return
    for names in itertools.product(*spec.axes.values()):
        settings: dict[str, Any] = {}
        for variants, name in zip(spec.axes.values(), names, strict=True):
            _merge(settings, variants[name])
        yield "-".join(names), settings


def _combined_values(spec: AblationSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    if not spec.grid:
        return
    for values in itertools.product(*spec.grid.values()):
        pairs = dict(zip(spec.grid, values, strict=True))
        settings: dict[str, Any] = {}
        for key, value in pairs.items():
            _merge(settings, nested(key, value))
        yield ",".join(f"{key}={short_name(value)}" for key, value in pairs.items()), settings


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
        *([] if spec.recipe is None else [_recipe_layer(spec.recipe)]),
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


@functools.cache
def _recipe_layer(name: str) -> Layer:
    return read_layer(recipe_path(name))


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


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Add the values to `into`, key by key; where both have one, `values` win."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {key: _copied(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value

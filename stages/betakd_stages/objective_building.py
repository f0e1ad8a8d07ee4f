"""The objective of plain arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from betakd_stages.choices import build, pick
from betakd_stages.energies import Energy, make_energy
from betakd_stages.ensemble.names import MARK, of_all_teachers, owner, plain
from betakd_stages.errors import ConfigError
from betakd_stages.features import FeatureChannel, FeatureStatistics
from betakd_stages.objective import Objective, channel_names
from betakd_stages.weighting_inputs import WeightingInputs
from betakd_stages.weightings import WEIGHTINGS, make_weighting


def build_objective(
    *,
    energies: Sequence[tuple[str, Mapping[str, Any]]] = (),
    features: Sequence[str | tuple[str, Mapping[str, Any]]] = (),
    weighting: str = "task",
    weighting_settings: Mapping[str, Any] | None = None,
    weighting_inputs: Sequence[str] | None = None,
    ce_weight: float = 1.0,
    reduction: str = "sample",
    semantics: str = "paper",
    teacher_features: Mapping[str, FeatureStatistics] | None = None,
    student_feature_sizes: Mapping[str, int] | None = None,
    num_teachers: int = 1,
    combine: str = "mixture",
) -> Objective:
    """The objective of plain arguments.

    `energies` are names with settings; `features` names of features, with settings or without; `weighting_inputs`
    what instance weighting sees (by default every teacher feature the cache holds). `teacher_features` are the
    cache's, `student_feature_sizes` the student's. `semantics` is that of the energies, and of the weighting unless
    its settings name another. With several teachers (`num_teachers`) features are named `NAME@1`, `NAME@2` and so on on
    the teachers' side, and a name without a number stands for all of them; `combine` is "mixture", or gives each
    teacher channels of its own ("channels", "prior"). Raises ConfigError for names or settings that do not exist.
    """
    teacher_features, student_feature_sizes = teacher_features or {}, student_feature_sizes or {}
    gate = pick("weighting", WEIGHTINGS, weighting).confidence_gate
    experts = [f"{MARK}{number}" for number in range(1, num_teachers + 1)] if combine != "mixture" else [""]
    built_energies: dict[str, Energy] = {}
    for name, settings in energies:
        if f"{name}{experts[0]}" in built_energies:
            raise ConfigError(f"energy {name!r} is named twice: name each energy once")
        for expert in experts:
            built_energies[f"{name}{expert}"] = make_energy(name, semantics, **{"confidence_gate": gate, **settings})
    built_features = {}
    for feature in features:
        stem, settings = (feature, {}) if isinstance(feature, str) else feature
        for name in of_all_teachers(stem, teacher_features):
            student_size = pick("student feature", student_feature_sizes, plain(name))
            teacher = pick("cached teacher feature", teacher_features, name)
            fixed = {"name": name, "student_size": student_size, "teacher": teacher}
            built_features[name] = build("feature", name, FeatureChannel, settings, fixed)
    if combine == "prior":
        _require_same_channels(channel_names(built_energies, built_features), num_teachers)
    inputs = WeightingInputs(_input_names(weighting, weighting_inputs, teacher_features), teacher_features)
    built_weighting = make_weighting(
        weighting,
        channel_names(built_energies, built_features),
        inputs.size,
        input_mean=inputs.mean,
        input_deviation=inputs.deviation,
        cross_entropy_weight=ce_weight,
        **{"semantics": semantics, **(weighting_settings or {})},
    )
    return Objective(built_energies, built_features, built_weighting, inputs, reduction, combine)


def _input_names(
    weighting: str, names: Sequence[str] | None, teacher_features: Mapping[str, FeatureStatistics]
) -> Sequence[str]:
    """The inputs named, or every pooled teacher feature the cache holds; the weighting's own where it has some."""
    factory = pick("weighting", WEIGHTINGS, weighting)
    if factory.uses_inputs and not factory.own_inputs:
        if names is None:
            return tuple(teacher_features)
        return [each for name in names for each in of_all_teachers(name, teacher_features)]
    if names:
        taken = f"its own inputs ({', '.join(factory.own_inputs)})" if factory.own_inputs else "no inputs"
        raise ConfigError(f"weighting {weighting!r} takes {taken}, but {', '.join(names)} are named: name none")
    return factory.own_inputs


def _require_same_channels(channels: Sequence[str], num_teachers: int) -> None:
    """Nothing; raises ConfigError where one teacher's prior has a channel that another's lacks: whoever has fewer terms
    would look the likelier."""
    of_teachers = [{plain(name) for name in channels if owner(name) == teacher} for teacher in range(num_teachers)]
    for number, own in enumerate(of_teachers, start=1):
        if missing := set.union(*of_teachers) - own:
            raise ConfigError(
                f"a mixture of priors compares teachers by the same channels, but teacher {number} has no "
                f"{min(missing)}: leave that channel out, or combine the teachers otherwise (--combine channels)"
            )

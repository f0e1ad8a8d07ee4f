"""Weightings: how much each channel counts for each sample. A new one is one file and one line here."""

from collections.abc import Sequence
from typing import Any

from betakd_stages.choices import build, pick
from betakd_stages.weightings.base import Weighting, WeightingOutput
from betakd_stages.weightings.fixed import FixedWeighting
from betakd_stages.weightings.gradients import GradientWeighting, GradNorm, PCGrad
from betakd_stages.weightings.learned import REFERENCE_SETTINGS, InstanceWeighting, KendallWeighting, TaskWeighting
from betakd_stages.weightings.manual import ManualWeighting
from betakd_stages.weightings.robust import RobustWeighting

WEIGHTINGS: dict[str, type[Weighting]] = {
    "fixed": FixedWeighting,
    "gradnorm": GradNorm,
    "instance": InstanceWeighting,
    "kendall": KendallWeighting,
    "manual": ManualWeighting,
    "pcgrad": PCGrad,
    "robust": RobustWeighting,
    "task": TaskWeighting,
}

SEMANTICS: dict[str, dict[str, dict[str, Any]]] = {"paper": {}, "reference": REFERENCE_SETTINGS}


def make_weighting(
    name: str, channels: Sequence[str], input_size: int, *, semantics: str = "paper", **settings: Any
) -> Weighting:
    """The weighting called `name` of these channels with inputs `[B, input_size]`; `settings` win over those that
    `semantics` brings.

    Raises ConfigError for an unknown name, semantics or setting, listing the valid ones.
    """
    factory = pick("weighting", WEIGHTINGS, name)
    defaults = pick("semantics", SEMANTICS, semantics).get(name, {})
    fixed = {"channels": tuple(channels), "input_size": input_size}
    return build("weighting", name, factory, {**defaults, **settings}, fixed)


__all__ = ["WEIGHTINGS", "GradientWeighting", "Weighting", "WeightingOutput", "make_weighting"]

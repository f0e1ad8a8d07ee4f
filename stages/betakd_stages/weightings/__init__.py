"""Weightings: how much each channel counts for each sample. A new one is one file and one line here."""

from collections.abc import Sequence
from typing import Any

from betakd_stages.choices import build, pick
from betakd_stages.weightings.base import Weighting, WeightingOutput
from betakd_stages.weightings.fixed import FixedWeighting
from betakd_stages.weightings.learned import InstanceWeighting, TaskWeighting

WEIGHTINGS: dict[str, type[Weighting]] = {
    "fixed": FixedWeighting,
    "instance": InstanceWeighting,
    "task": TaskWeighting,
}


def make_weighting(name: str, channels: Sequence[str], input_size: int, **settings: Any) -> Weighting:
    """The weighting called `name` of these channels with inputs `[B, input_size]`.

    Raises ConfigError for an unknown name or setting, listing the valid ones.
    """
    factory = pick("weighting", WEIGHTINGS, name)
    return build("weighting", name, factory, settings, channels=tuple(channels), input_size=input_size)


__all__ = ["WEIGHTINGS", "Weighting", "WeightingOutput", "make_weighting"]

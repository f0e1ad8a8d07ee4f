"""Energies: how far the student is from the teacher at each token. A new one is one file and one line here."""

from collections.abc import Mapping
from typing import Any

from betakd_stages.choices import build, pick
from betakd_stages.energies.base import Energy
from betakd_stages.energies.divergences import ForwardKL
from betakd_stages.energies.probabilities import CosineOfProbabilities

ENERGIES: dict[str, type[Energy]] = {
    "cosine_probs": CosineOfProbabilities,
    "fkl": ForwardKL,
}

REFERENCE_SETTINGS: dict[str, dict[str, Any]] = {
    "fkl": {"include_teacher_entropy": True},
}
"""What `semantics="reference"` sets: the paper's published code where it differs from the formulas."""

SEMANTICS: dict[str, Mapping[str, dict[str, Any]]] = {"paper": {}, "reference": REFERENCE_SETTINGS}


def make_energy(name: str, semantics: str = "paper", **settings: Any) -> Energy:
    """The energy called `name`; `settings` win over those that `semantics` brings.

    Raises ConfigError for an unknown name, semantics or setting, listing the valid ones.
    """
    factory = pick("energy", ENERGIES, name)
    defaults = pick("semantics", SEMANTICS, semantics).get(name, {})
    return build("energy", name, factory, {**defaults, **settings})


__all__ = ["ENERGIES", "REFERENCE_SETTINGS", "Energy", "make_energy"]

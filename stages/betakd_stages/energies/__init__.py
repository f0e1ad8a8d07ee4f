"""Energies: how far the student is from the teacher at each token. A new one is one file and one line here."""

from typing import Any

from betakd_stages.choices import build, pick
from betakd_stages.energies.alpha_beta import AlphaBeta
from betakd_stages.energies.base import Energy
from betakd_stages.energies.curriculum import CurriculumTemperature, CurriculumTemperatureNetwork
from betakd_stages.energies.decoupled import DecoupledKL
from betakd_stages.energies.divergences import (
    AdaptiveKL,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
)
from betakd_stages.energies.logits import CosineOfLogits, MeanSquaredErrorOfLogits
from betakd_stages.energies.probabilities import CosineOfProbabilities, SquaredErrorOfProbabilities
from betakd_stages.energies.taid import Taid

ENERGIES: dict[str, type[Energy]] = {
    "adaptive_kl": AdaptiveKL,
    "alpha_beta": AlphaBeta,
    "cosine_logits": CosineOfLogits,
    "cosine_probs": CosineOfProbabilities,
    "ctkd": CurriculumTemperature,
    "ctkd_mlp": CurriculumTemperatureNetwork,
    "dkd": DecoupledKL,
    "fkl": ForwardKL,
    "js": JensenShannon,
    "mse_logits": MeanSquaredErrorOfLogits,
    "mse_probs": SquaredErrorOfProbabilities,
    "rkl": ReverseKL,
    "skew_fkl": SkewForwardKL,
    "skew_rkl": SkewReverseKL,
    "taid": Taid,
    "tvd": TotalVariation,
}

REFERENCE_SETTINGS: dict[str, dict[str, Any]] = {
    "adaptive_kl": {"as_published": True},
    "cosine_logits": {"as_published": True},
    "cosine_probs": {"temperature_power": 2.0},
    # Its curriculum stands still at the first of ten epochs and does not reverse the gradient.
    "ctkd": {
        "include_teacher_entropy": True,
        "temperature_power": 1.0,
        "maximum_temperature": 4.0,
        "gradient_scale": 0.97552825814,
    },
    "ctkd_mlp": {
        "include_teacher_entropy": True,
        "minimum_temperature": 0.5,
        "temperature_span": 3.5,
        "gradient_scale": 1.0,
        "initial": 0.0,
    },
    "dkd": {"temperature_power": 2.0},
    "fkl": {"include_teacher_entropy": True},
    "js": {"teacher_weight": 0.1},
    "mse_logits": {"as_published": True, "temperature_power": 2.0},
    "mse_probs": {"mean_over_vocabulary": True, "temperature_power": 2.0},
    "skew_fkl": {"include_teacher_entropy": True},
    "taid": {"include_teacher_entropy": True},
}
"""What `semantics="reference"` sets: the paper's published code on the same tensors, where it differs from "paper"."""

SEMANTICS: dict[str, dict[str, dict[str, Any]]] = {"paper": {}, "reference": REFERENCE_SETTINGS}


def make_energy(name: str, semantics: str = "paper", **settings: Any) -> Energy:
    """The energy called `name`; `settings` win over those that `semantics` brings.

    Raises ConfigError for an unknown name, semantics or setting, listing the valid ones.
    """
    factory = pick("energy", ENERGIES, name)
    defaults = pick("semantics", SEMANTICS, semantics).get(name, {})
    return build("energy", name, factory, {**defaults, **settings}, fixed={})


__all__ = ["ENERGIES", "REFERENCE_SETTINGS", "Energy", "make_energy"]

"""The settings of the stages: strict, frozen, and free of torch, so that `--help` and configuration errors are quick.

An unknown key, a wrong type or a value out of range is an error; nothing is dropped or coerced.
"""

from betakd_stages.settings.adapters import AdapterSettings
from betakd_stages.settings.base import Settings
from betakd_stages.settings.caching import CacheTeacherSettings
from betakd_stages.settings.distill import ControlSettings, DistillSettings
from betakd_stages.settings.ensemble import EnsembleSettings
from betakd_stages.settings.evaluation import EvaluateSettings
from betakd_stages.settings.mixture import MixtureSettings
from betakd_stages.settings.objective import EnergySettings, FeatureSettings, ObjectiveSettings, WeightingSettings
from betakd_stages.settings.posterior import PosteriorSettings
from betakd_stages.settings.ray import RaySettings
from betakd_stages.settings.selection import SelectionSettings
from betakd_stages.settings.teacher import GenerationSettings, VllmSettings
from betakd_stages.settings.training import TrainingSettings
from betakd_stages.settings.trust import FitSettings, TrustSettings
from betakd_stages.settings.vision import CacheVisionSettings

__all__ = [
    "AdapterSettings",
    "CacheTeacherSettings",
    "CacheVisionSettings",
    "ControlSettings",
    "DistillSettings",
    "EnergySettings",
    "EnsembleSettings",
    "EvaluateSettings",
    "FeatureSettings",
    "FitSettings",
    "GenerationSettings",
    "MixtureSettings",
    "ObjectiveSettings",
    "PosteriorSettings",
    "RaySettings",
    "SelectionSettings",
    "Settings",
    "TrainingSettings",
    "TrustSettings",
    "VllmSettings",
    "WeightingSettings",
]

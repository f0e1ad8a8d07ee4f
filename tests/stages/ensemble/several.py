"""Caches of two teachers over the same samples, and the settings of a run on some of them."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.world import World

from betakd_stages.caching.run import cache_teacher
from betakd_stages.models.tiny import TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

FEWER = "digits:transfer?count=30&seed=3&label_noise=0.2"
"""The first 30 of the world's 48 samples."""
TRAINING = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "log_every_steps": 1, "probe_samples": 0}


@dataclass(frozen=True, slots=True)
class Caches:
    """The world's cache, a copy of it, and another teacher's of all and of fewer samples."""

    first: Path
    copy: Path
    other: Path
    fewer: Path


def make_caches(world: World, folder: Path) -> Caches:
    """The caches, in a folder."""
    shutil.copytree(world.cache, folder / "copy")
    teacher = save_tiny_model(folder / "teacher", TEACHER_SIZE, seed=7)
    for name, data in (("other", world.data), ("fewer", FEWER)):
        rules = CacheTeacherSettings(teacher=str(teacher), data=data, top_k=9, top_p=0.9, temperatures=(1.0, 2.0))
        cache_teacher(rules, folder / name, progress=SilentProgress())
    return Caches(world.cache, folder / "copy", folder / "other", folder / "fewer")


def settings(world: World, *cache: Path, **changes: Any) -> DistillSettings:
    common = {"student": str(world.student), "data": world.data, "training": TRAINING}
    energies = {"objective": {"energies": ["fkl"], "features": ["prompt"]}}
    return DistillSettings.model_validate({**common, **energies, "cache": [str(path) for path in cache], **changes})

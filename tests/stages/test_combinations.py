"""Every energy with every weighting, through the real training: a few steps, finite numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.distillation.run import distill
from betakd_stages.energies import ENERGIES
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings
from betakd_stages.trust.file import TrustIdentity, cache_fingerprint, write_trust
from betakd_stages.trust.groups import Groups
from betakd_stages.weightings import WEIGHTINGS

TRAINING = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "log_every_steps": 1, "num_threads": 1}


def even_trust(world: World, path: Path) -> Path:
    """A trust file that believes the teacher by half everywhere."""
    cache = open_cache(world.cache)
    half = np.full(len(cache), 0.5, np.float32)
    groups = Groups(("all",), np.zeros(len(cache), np.int32))
    identity = TrustIdentity(cache_fingerprint(cache), {"specification": world.data}, {})
    write_trust(path, cache.sample_ids.to_pylist(), groups, half, half, identity)
    return path


def final_metrics(world: World, out: Path, **settings: Any) -> dict[str, float]:
    common = {"student": str(world.student), "cache": str(world.cache), "data": world.data, "training": TRAINING}
    if settings["weighting"]["name"] == "robust":
        common["trust"] = str(even_trust(world, out.with_name("trust.parquet")))
    return distill(DistillSettings.model_validate({**common, **settings}), out, progress=SilentProgress()).final_metrics


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
@pytest.mark.parametrize("energy", sorted(ENERGIES))
def test_every_energy_trains_with_every_weighting(world: World, tmp_path: Path, energy: str, weighting: str) -> None:
    objective = {"energies": [energy], "features": ["prompt"]}
    metrics = final_metrics(world, tmp_path / "run", objective=objective, weighting={"name": weighting})
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics[f"beta/{energy}"] > 0
    assert metrics[f"energy/{energy}"] != 0


@pytest.mark.parametrize("weighting", ["fixed", "task", "instance"])
def test_all_energies_at_once_train_as_the_papers_code_computes_them(
    world: World, tmp_path: Path, weighting: str
) -> None:
    objective = {"energies": sorted(ENERGIES), "semantics": "reference", "cross_entropy_weight": 0.5}
    metrics = final_metrics(world, tmp_path / "run", objective=objective, weighting={"name": weighting})
    assert all(math.isfinite(value) for value in metrics.values())
    assert {f"beta/{energy}" for energy in ENERGIES} <= metrics.keys()

"""Short runs with a posterior, and evaluations of them."""

import json
from pathlib import Path
from typing import Any

import yaml
from tests.world import World

from betakd_stages.distillation.run import distill
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings, EvaluateSettings

BENCHMARK = "digits:test?count=30"
NUM_DRAWS = 4


def run_of(world: World, out: Path, **changes: Any) -> Path:
    """A short run with its posterior; it learned to end its answers and to name no image in them."""
    values = {
        "student": str(world.student),
        "data": world.data,
        "objective": {"energies": []},
        "training": {"steps": 30, "learning_rate": 5e-3, "probe_samples": 0},
        "posterior": {"count": 3, "every_steps": 3, "learning_rate": 1e-2},
        **changes,
    }
    settings = DistillSettings.model_validate(values)
    distill(settings, out, progress=SilentProgress())
    (out / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    return out


def settings(run: Path, **changes: Any) -> EvaluateSettings:
    common = {"model": str(run), "benchmark": BENCHMARK, "max_new_tokens": 4, "batch_size": 8}
    return EvaluateSettings.model_validate({**common, **changes})


def predictions_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]

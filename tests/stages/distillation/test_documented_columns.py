"""docs/training.md lists every column that a run writes, and none that it does not."""

import json
import re
from pathlib import Path

from tests.stages.test_training import INSTANCE, TRAINING
from tests.world import World

from betakd_stages.distillation.run import distill
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
ON_A_GPU = {"peak_gpu_memory_mib"}


def documented() -> dict[str, set[str]]:
    """The columns by file: `.../q10` continues the name before it, and `quartile1` to `quartile4` are four."""
    tables = PAGE.read_text(encoding="utf-8").partition("<!-- columns:")[2].partition("<!-- end of columns -->")[0]
    columns: dict[str, set[str]] = {}
    file = ""
    for line in tables.splitlines():
        names = re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("|") else []
        if names and names[0].endswith(".jsonl"):
            file = names[0]
        elif names:
            stem = re.sub(r"/quartile1$", "", names[0])
            range_of = [f"{stem}/quartile{number}" for number in (1, 2, 3, 4)] if stem != names[0] else names
            columns.setdefault(file, set()).update(name.replace("...", stem) for name in range_of)
    return columns


def test_the_page_lists_the_columns_of_a_run(world: World, tmp_path: Path) -> None:
    settings = {
        "student": str(world.student),
        "cache": str(world.cache),
        "data": world.data,
        "validation": world.data,
        **INSTANCE,
        "training": {**TRAINING, "steps": 3, "evaluate_every_steps": 3},
    }
    distill(DistillSettings.model_validate(settings), tmp_path / "run", progress=SilentProgress())
    for file, names in documented().items():
        (row,) = [json.loads(line) for line in (tmp_path / "run" / file).read_text(encoding="utf-8").splitlines()]
        found = {re.sub("/(fkl|cosine_probs|feature:vision|feature:prompt)", "/CHANNEL", name) for name in row}
        assert found | ON_A_GPU == names | ON_A_GPU, file

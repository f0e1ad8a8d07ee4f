"""Stages that need no torch: what they do follows from the settings, and every call is noted beside the student."""

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from betakd_pipe.stage_runs import Stages
from betakd_stages.errors import DataError
from betakd_stages.progress import Progress
from betakd_stages.settings import DistillSettings, EvaluateSettings

VALIDATION_BY_BETA = {0.3: 70.0, 1.0: 80.0, 3.0: 90.0, 10.0: 90.0, 30.0: float("nan")}
CALLS = "calls.txt"
GPUS = "FAKE_GPUS"
"""The variable that names the GPUs of the fake stages."""


@dataclass(frozen=True, slots=True)
class FakeSummary:
    """As betakd_stages.distillation.run.DistillSummary."""

    steps: int
    final_metrics: dict[str, float] = field(default_factory=dict)
    already_finished: bool = False


def load_fake_stages() -> Stages:
    """Stages for run_ablations; a module-level function, so that worker processes can import it."""
    return Stages(fake_distill, fake_evaluate, fake_gpus)


def fake_gpus() -> list[str]:
    """As betakd_stages.caching.workers.visible_gpus."""
    return os.environ.get(GPUS, "").split()


def fake_distill(settings: DistillSettings, out: Path, *, progress: Progress) -> FakeSummary:
    """Fails for data `broken:` (the user's) and `bug:`; dies for `killed:`; sleeps for `slow:`.

    `bug-once:` and `killed-once:` do so when they are first seen, `slow-second:` for seed 1 where no file `quick` lies
    beside the student.
    """
    seen_before = str(out) in distilled(Path(settings.student))
    with (Path(settings.student) / CALLS).open("a", encoding="utf-8") as file:
        file.write(f"{out}\n")
    if settings.data.startswith("broken:"):
        raise DataError("the data is broken: mend it")
    if settings.data.startswith("bug:") or (settings.data.startswith("bug-once:") and not seen_before):
        raise ZeroDivisionError("a bug")
    if settings.data.startswith("killed:") or (settings.data.startswith("killed-once:") and not seen_before):
        os.kill(os.getpid(), signal.SIGKILL)
    slow_second = settings.data.startswith("slow-second:") and settings.seed == 1
    if settings.data.startswith("slow:") or (slow_second and not (Path(settings.student) / "quick").exists()):
        time.sleep(60)
    progress.start("student", total=2)
    beta = float(settings.weighting.options.get("beta", 1.0))
    (out / "model").mkdir(exist_ok=True)
    (out / "model" / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    made = {"seed": settings.seed, "beta": beta, "process": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    (out / "result.json").write_text(json.dumps(made), encoding="utf-8")
    (out / "timings.jsonl").write_text(
        '{"step": 10, "seconds_per_step": 0.5, "peak_memory_mib": 300}\n'
        '{"step": 14, "seconds_per_step": 0.25, "peak_memory_mib": 350}\n',
        encoding="utf-8",
    )
    metrics = {"validation_accuracy": VALIDATION_BY_BETA[beta], "beta/fkl": beta, "beta/fkl/q50": beta}
    return FakeSummary(settings.training.steps or 1, metrics)


def fake_evaluate(settings: EvaluateSettings, out: Path, *, progress: Progress) -> dict[str, Any]:
    """Scores that tell seed and beta of the run."""
    made = json.loads((Path(settings.model) / "result.json").read_text(encoding="utf-8"))
    scores = {
        "accuracy": 50.0 + 10 * made["seed"] + made["beta"],
        "accuracy_by_category": {"even": 60.0, "which": 40.0},
        "expected_calibration_error": 0.125,
        "official": {"img_accuracy": 20.0 + made["beta"], "tasks": {"count": 1.0}},
        "max_new_tokens": settings.max_new_tokens,
    }
    (out / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    return scores


def distilled(student: Path) -> list[str]:
    """The folders that were distilled into, in the order of the calls."""
    calls = student / CALLS
    return calls.read_text(encoding="utf-8").splitlines() if calls.is_file() else []

"""Reading an ablation's folder back, finished or not, wherever it lies now."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.rows import ResultRow, stored_row
from betakd_pipe.ablation.run import SPEC, TUNED, Ablation, candidate_runs, untuned_runs
from betakd_pipe.ablation.spec import AblationSpec, PlannedRun, all_methods, plan_run
from betakd_pipe.config import load_settings
from betakd_stages.errors import ConfigError


def read_ablation(out: Path) -> tuple[AblationSpec, list[ResultRow]]:
    """What the ablation in `out` asked for, and the rows of its runs that are done, in order of methods and seeds.

    Raises ConfigError where `out` holds no ablation.
    """
    if not (out / SPEC).is_file():
        raise ConfigError(f"{out}: has no {SPEC}, so it is no ablation: name a folder that betakd-pipe ablate wrote")
    ablation = Ablation(load_settings(AblationSpec, out / SPEC, {}), out)
    runs = [*untuned_runs(ablation), *_tuned_runs(ablation)]
    # Runs that would do the same are done once, maybe in the folder of another one.
    done = {run.identity: row for run in (*runs, *candidate_runs(ablation)) if (row := stored_row(run)) is not None}
    rows = {
        (run.method, run.seed): replace(done[run.identity], method=run.method, seed=run.seed)
        for run in runs
        if run.identity in done
    }
    wanted = [(method, seed) for method in all_methods(ablation.spec) for seed in ablation.spec.seeds]
    return ablation.spec, [rows[key] for key in wanted if key in rows]


def _tuned_runs(ablation: Ablation) -> list[PlannedRun]:
    """The runs of the tuned methods, of those for which a value was chosen."""
    path = ablation.out / TUNED
    tuned: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        plan_run(ablation.spec, ablation.out, method, seed, tuned={tuning["key"]: tuning["chosen"]})
        for method, tuning in tuned.items()
        if method in ablation.spec.methods
        for seed in ablation.spec.seeds
    ]

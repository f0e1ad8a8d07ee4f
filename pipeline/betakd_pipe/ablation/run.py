"""Ablations: many runs of stage two over shared caches, in worker processes, into one table.

Runs live in OUT/seed-N/runs/METHOD, each with its evaluation inside, and OUT/spec.yaml says what was asked for. Runs
that would do the same are done once. What is done is kept, what was interrupted goes on, what fails is named at the
end. Tuned methods come in a second wave, when the runs of their candidates are there.
"""

import itertools
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from betakd_pipe.ablation.rows import ResultRow, read_row, write_results
from betakd_pipe.ablation.spec import AblationSpec, PlannedRun, TuneSettings, all_methods, candidate_name, plan_run
from betakd_pipe.ablation.workers import Failure, LoadStages, describe, execute_all, worker_pool
from betakd_pipe.stage_runs import load_stages
from betakd_stages.errors import ConfigError, UserError
from betakd_stages.files import write_atomically
from betakd_stages.progress import Progress

Outcomes = dict[str, ResultRow | Failure]
"""What came of each run, by its identity: runs that would do the same share one outcome."""

SPEC = "spec.yaml"
TUNED = "tuned.json"


@dataclass(frozen=True, slots=True)
class Ablation:
    """A spec and the folder of its runs."""

    spec: AblationSpec
    out: Path


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value that was tried, and the metric it reached."""

    value: Any
    metric: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was chosen, and from what."""

    key: str
    metric: str
    seed: int
    candidates: tuple[Candidate, ...]
    chosen: Any


@dataclass(slots=True)
class AblationResult:
    """Rows in the order of methods and seeds; reasons of what failed, by run; what was tuned, by method."""

    rows: list[ResultRow] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    tuned: dict[str, Tuning] = field(default_factory=dict)


def run_ablation(spec: AblationSpec, out: Path, jobs: int | None, progress: Progress) -> list[ResultRow]:
    """The rows of one ablation. Raises UserError naming the runs that failed."""
    (result,) = run_ablations([Ablation(spec, out)], jobs=jobs, progress=progress)
    if result.failures:
        raise UserError("\n".join(f"{run} failed: {reason}" for run, reason in result.failures.items()))
    return result.rows


def run_ablations(
    ablations: Sequence[Ablation],
    *,
    jobs: int | None = None,
    progress: Progress,
    load_stages: LoadStages = load_stages,
) -> list[AblationResult]:
    """The results of several ablations, done by one set of `jobs` worker processes (default: one per core).

    Writes spec.yaml, results.csv and tuned.json into the folder of each. Raises ConfigError before anything runs if a
    spec is wrong; a run that fails is recorded in the result.
    """
    untuned = [untuned_runs(ablation) for ablation in ablations]
    candidates = [candidate_runs(ablation) for ablation in ablations]
    results = [AblationResult() for _ in ablations]
    for ablation in ablations:
        _write_spec(ablation)
    first_wave = list(itertools.chain(*untuned, *candidates))
    num_tuned = sum(len(ablation.spec.seeds) * len(_tuned_methods(ablation.spec)) for ablation in ablations)
    outcomes: Outcomes = {}
    progress.start("ablation", total=len(first_wave) + num_tuned)
    try:
        with worker_pool(jobs or os.cpu_count() or 1) as pool:
            _execute_missing(pool, first_wave, outcomes, load_stages, progress)
            tuned = [
                _tuned_runs(ablation, outcomes, result) for ablation, result in zip(ablations, results, strict=True)
            ]
            _execute_missing(pool, list(itertools.chain(*tuned)), outcomes, load_stages, progress)
    finally:
        progress.finish()
    for ablation, result, *runs in zip(ablations, results, untuned, candidates, tuned, strict=True):
        _collect(ablation, list(itertools.chain(*runs)), outcomes, result)
    return results


def _write_spec(ablation: Ablation) -> None:
    ablation.out.mkdir(parents=True, exist_ok=True)
    asked = ablation.spec.model_dump(mode="json", exclude_defaults=True)
    write_atomically(ablation.out / SPEC, yaml.safe_dump(asked, sort_keys=False))


def untuned_runs(ablation: Ablation) -> list[PlannedRun]:
    """The runs of the methods that need no tuning, seed by seed."""
    spec = ablation.spec
    return [
        plan_run(spec, ablation.out, method, seed)
        for seed in spec.seeds
        for method, settings in all_methods(spec).items()
        if settings.tune is None
    ]


def _tuned_methods(spec: AblationSpec) -> dict[str, TuneSettings]:
    return {method: settings.tune for method, settings in spec.methods.items() if settings.tune is not None}


def candidate_runs(ablation: Ablation) -> list[PlannedRun]:
    """The runs to choose among. Raises ConfigError where they would have no validation metric."""
    runs: list[PlannedRun] = []
    for method, tune in _tuned_methods(ablation.spec).items():
        candidates = [_candidate_run(ablation, method, tune, value) for value in tune.values]
        if tune.metric.startswith("validation") and candidates[0].settings.validation is None:
            raise ConfigError(f"method {method}: {tune.metric} needs validation data: set base.validation")
        runs += candidates
    return runs


def _candidate_run(ablation: Ablation, method: str, tune: TuneSettings, value: Any) -> PlannedRun:
    name = candidate_name(method, value)
    return plan_run(ablation.spec, ablation.out, method, tune.seed, name=name, tuned={tune.key: value})


def _tuned_runs(ablation: Ablation, outcomes: Outcomes, result: AblationResult) -> list[PlannedRun]:
    """The runs of the tuned methods with the values chosen; a method that could not be tuned has none."""
    runs: list[PlannedRun] = []
    for method, tune in _tuned_methods(ablation.spec).items():
        try:
            tuning = _choose(ablation, method, tune, outcomes)
        except UserError as error:
            result.failures[method] = str(error)
            continue
        result.tuned[method] = tuning
        tuned = {tune.key: tuning.chosen}
        runs += [plan_run(ablation.spec, ablation.out, method, seed, tuned=tuned) for seed in ablation.spec.seeds]
    return runs


def _choose(ablation: Ablation, method: str, tune: TuneSettings, outcomes: Outcomes) -> Tuning:
    """The candidate with the largest metric, the smaller of two equal ones; one that diverged to NaN never wins."""
    candidates = []
    for value in tune.values:
        outcome = outcomes[_candidate_run(ablation, method, tune, value).identity]
        if isinstance(outcome, Failure):
            raise UserError(f"not run, because {candidate_name(method, value)} failed and nothing could be chosen")
        if tune.metric not in outcome.metrics:
            known = ", ".join(outcome.metrics)
            raise ConfigError(f"tune.metric: found {tune.metric}, expected one of {known}: name one of these")
        candidates.append(Candidate(value, outcome.metrics[tune.metric]))
    usable = [candidate for candidate in candidates if not math.isnan(candidate.metric)]
    if not usable:
        raise UserError(f"not run, because {tune.metric} is NaN for every candidate: try other values")
    best = max(candidate.metric for candidate in usable)
    tied = [candidate.value for candidate in usable if candidate.metric == best]
    numbers = all(isinstance(value, int | float) for value in tied)
    return Tuning(tune.key, tune.metric, tune.seed, tuple(candidates), min(tied) if numbers else tied[0])


def _execute_missing(
    pool: ProcessPoolExecutor,
    runs: Sequence[PlannedRun],
    outcomes: Outcomes,
    load_stages: LoadStages,
    progress: Progress,
) -> None:
    """Bring the outcome of every run into `outcomes`: from its folder, from an identical run, or by executing it."""
    missing: dict[str, PlannedRun] = {}
    for run in runs:
        if run.identity in outcomes or run.identity in missing:
            progress.advance()
        elif (stored := _stored(run)) is not None:
            outcomes[run.identity] = stored
            progress.advance()
        else:
            missing[run.identity] = run

    def record(run: PlannedRun, outcome: ResultRow | Failure) -> None:
        outcomes[run.identity] = outcome
        progress.advance(run=f"{run.method} seed {run.seed}")

    execute_all(pool, list(missing.values()), load_stages, record)


def _stored(run: PlannedRun) -> ResultRow | Failure | None:
    try:
        return read_row(run)
    except ConfigError as error:
        return Failure(describe(error))


def _collect(ablation: Ablation, runs: Sequence[PlannedRun], outcomes: Outcomes, result: AblationResult) -> None:
    """Fill the result with the outcomes of its runs, and write the files of the ablation."""
    rows = {}
    for run in runs:
        outcome = outcomes[run.identity]
        if isinstance(outcome, Failure):
            result.failures[str(run.folder)] = outcome.reason
        else:
            rows[run.method, run.seed] = replace(outcome, method=run.method, seed=run.seed)
    wanted = [(method, seed) for method in all_methods(ablation.spec) for seed in ablation.spec.seeds]
    result.rows = [rows[key] for key in wanted if key in rows]
    write_results(ablation.out, result.rows)
    if result.tuned:
        tuned = {method: asdict(tuning) for method, tuning in result.tuned.items()}
        write_atomically(ablation.out / TUNED, json.dumps(tuned, indent=2) + "\n")

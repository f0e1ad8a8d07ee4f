"""Ablations: many runs of stage two over shared caches, in worker processes, into one table.

Runs live in OUT/seed-N/runs/METHOD, each with its evaluation inside, and OUT/spec.yaml says what was asked for. Runs
that would do the same are done once. What is done is kept, what was interrupted goes on, what fails is named at the
end. Tuned methods come in a second wave, when the runs of their candidates are there. OUT/results.csv, OUT/table.md and
OUT/table.csv are written anew after every run.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from betakd_pipe.ablation.execution import (
    Execution,
    Failure,
    OpenExecutor,
    SilentWatch,
    Slots,
    Watch,
    stopped_by_sigterm,
)
from betakd_pipe.ablation.rows import ResultRow, read_row, write_results
from betakd_pipe.ablation.shaped import shaped_table, write_shaped
from betakd_pipe.ablation.spec import AblationSpec, PlannedRun, TuneSettings, all_methods, candidate_name, plan_run
from betakd_pipe.ablation.workers import LoadStages, describe
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
    retries: int = 1,
    progress: Progress,
    watch: Watch | None = None,
    load_stages: LoadStages = load_stages,
    open_executor: OpenExecutor = Slots,
) -> list[AblationResult]:
    """The results of several ablations, done by one set of `jobs` worker processes (default: one per GPU or core), or
    by what `open_executor` opens.

    Writes spec.yaml, results.csv, table.md, table.csv and tuned.json into the folder of each. Raises ConfigError before
    anything runs if a spec is wrong, and Interrupted where SIGTERM stopped it; a run that fails is recorded in the
    result.
    """
    untuned = [untuned_runs(ablation) for ablation in ablations]
    candidates = [candidate_runs(ablation) for ablation in ablations]
    results = [AblationResult() for _ in ablations]
    for ablation in ablations:
        shaped_table(ablation.spec, [])  # a table that cannot be made is found now
        _write_spec(ablation)
    books = [
        _Book(ablation, [*plain, *tried], result)
        for ablation, plain, tried, result in zip(ablations, untuned, candidates, results, strict=True)
    ]
    num_runs = sum(len(book.runs) + num_tuned_runs(book.ablation) for book in books)
    outcomes: Outcomes = {}
    how = Execution(jobs, retries, any(ablation.spec.own_processes for ablation in ablations))
    recorder = _Recorder(books, outcomes, progress, watch or SilentWatch())
    missing = _missing_runs(books, recorder)
    progress.start("ablation", total=num_runs, done=recorder.num_done)
    try:
        with (
            stopped_by_sigterm(lambda: f"with {recorder.num_done} of {num_runs} runs done"),
            open_executor(load_stages, how) as executor,
        ):
            executor.execute(missing, recorder)
            for book in books:
                book.runs += _tuned_runs(book.ablation, outcomes, book.result)
            num_done = recorder.num_done
            missing = _missing_runs(books, recorder)
            progress.advance(recorder.num_done - num_done)
            executor.execute(missing, recorder)
    finally:
        progress.finish()
    for book in books:
        book.write(outcomes)
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


def num_tuned_runs(ablation: Ablation) -> int:
    """How many runs follow when the candidates are there."""
    return len(ablation.spec.seeds) * len(_tuned_methods(ablation.spec))


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


def _missing_runs(books: Sequence["_Book"], recorder: "_Recorder") -> list[PlannedRun]:
    """The runs to execute; those that lie in their folders, or equal another one, are counted as done."""
    missing: dict[str, PlannedRun] = {}
    for run in (run for book in books for run in book.runs):
        if run.folder in recorder.counted:
            continue
        recorder.counted.add(run.folder)
        if run.identity not in recorder.outcomes and run.identity not in missing:
            stored = _stored(run)
            if stored is None:
                missing[run.identity] = run
                continue
            recorder.outcomes[run.identity] = stored
        recorder.num_done += 1
    for book in books:
        book.write(recorder.outcomes)
    return list(missing.values())


def _stored(run: PlannedRun) -> ResultRow | Failure | None:
    try:
        return read_row(run)
    except ConfigError as error:
        return Failure(describe(error))


@dataclass(slots=True)
class _Book:
    """The runs of one ablation, and the files that say what came of them."""

    ablation: Ablation
    runs: list[PlannedRun]
    result: AblationResult

    def write(self, outcomes: Outcomes) -> None:
        """Fill the result with the outcomes there are, and write the files of the ablation."""
        rows = {}
        for run in self.runs:
            outcome = outcomes.get(run.identity)
            if isinstance(outcome, Failure):
                self.result.failures[str(run.folder)] = outcome.reason
            elif outcome is not None:
                rows[run.method, run.seed] = replace(outcome, method=run.method, seed=run.seed)
        spec, out = self.ablation.spec, self.ablation.out
        wanted = [(method, seed) for method in all_methods(spec) for seed in spec.seeds]
        self.result.rows = [rows[key] for key in wanted if key in rows]
        write_results(out, self.result.rows)
        write_shaped(out, shaped_table(spec, self.result.rows))
        if self.result.tuned:
            tuned = {method: asdict(tuning) for method, tuning in self.result.tuned.items()}
            write_atomically(out / TUNED, json.dumps(tuned, indent=2) + "\n")


class _Recorder:
    """Notes every outcome in the books as it comes, and passes on what a watch wants to know."""

    def __init__(self, books: Sequence[_Book], outcomes: Outcomes, progress: Progress, watch: Watch) -> None:
        self._books = books
        self.outcomes = outcomes
        self._progress = progress
        self._watch = watch
        self.num_done = 0
        self.counted: set[Path] = set()
        """The folders of runs that are done, or about to be."""

    def began(self, run: PlannedRun) -> None:
        self._watch.began(run)

    def moved(self, run: PlannedRun, what: str, done: int, total: int) -> None:
        self._watch.moved(run, what, done, total)

    def ended(self, run: PlannedRun, outcome: ResultRow | Failure) -> None:
        self.outcomes[run.identity] = outcome
        for book in self._books:
            book.write(self.outcomes)
        self._watch.ended(run, outcome)
        self.num_done += 1
        shown = "failed" if isinstance(outcome, Failure) else f"{outcome.accuracy:.1f} %"
        self._progress.advance(run=f"{run.name}: {shown}")

"""What an ablation would do and cost: its runs in order, and the cost of one of them; nothing is written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from betakd_pipe.ablation.rows import ResultRow, read_row
from betakd_pipe.ablation.run import Ablation, candidate_runs, num_tuned_runs, untuned_runs
from betakd_pipe.ablation.shaped import shaped_table
from betakd_pipe.ablation.spec import PlannedRun
from betakd_stages.errors import ConfigError
from betakd_stages.progress import Progress

DONE, TO_DO = "done", "to do"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """A run, and what the command would do about it."""

    run: PlannedRun
    state: str
    row: ResultRow | None = None


@dataclass(frozen=True, slots=True)
class RunCost:
    """What one run costs, and from what that is known."""

    seconds: float
    memory_bytes: float | None
    gpu_memory_bytes: float | None
    known_from: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs in the order in which they begin; the tuned ones have their values only when their candidates ran."""

    entries: tuple[PlannedEntry, ...]
    num_tuned: int
    num_slots: int
    cost: RunCost | None
    """None where nothing is left to do."""


Measure = Callable[[PlannedRun, Progress], RunCost]


def plan(ablation: Ablation, num_slots: int, progress: Progress, measure: Measure) -> Plan:
    """What `run_ablations` would do. Raises ConfigError for a wrong spec, and what the run that is measured raises."""
    shaped_table(ablation.spec, [])
    entries: list[PlannedEntry] = []
    seen: dict[str, str] = {}
    for run in (*untuned_runs(ablation), *candidate_runs(ablation)):
        entries.append(_entry(run, seen))
        seen.setdefault(run.identity, run.name)
    num_tuned = num_tuned_runs(ablation)
    to_do = [entry.run for entry in entries if entry.state == TO_DO]
    cost = _cost(entries, to_do, progress, measure) if to_do or num_tuned else None
    return Plan(tuple(entries), num_tuned, num_slots, cost)


def measured_cost(run: PlannedRun, progress: Progress) -> RunCost:
    """The cost of a run by a few of its steps."""
    from betakd_stages.distillation.dry_run import dry_run

    cost = dry_run(run.settings, progress=progress)
    return RunCost(
        seconds=cost.hours * 3600,
        memory_bytes=cost.peak_memory_bytes,
        gpu_memory_bytes=cost.peak_device_memory_bytes,
        known_from=f"a few steps of {run.name}, without loading and evaluation",
    )


def describe_plan(planned: Plan) -> Iterator[str]:
    """The plan in lines."""
    width = max(len(entry.run.name) for entry in planned.entries) if planned.entries else 0
    for number, entry in enumerate(planned.entries, start=1):
        yield f"{number:4}  {entry.run.name:{width}}  {entry.state}"
    num_done = sum(entry.state == DONE for entry in planned.entries)
    num_to_do = sum(entry.state == TO_DO for entry in planned.entries)
    others = len(planned.entries) - num_done - num_to_do
    tuned = f", and {planned.num_tuned} of tuned methods after these" if planned.num_tuned else ""
    counts = f"{num_done} done, {num_to_do} to do, {others} equal to another or refused"
    yield f"runs: {len(planned.entries)}: {counts}{tuned}"
    if planned.cost is None:
        return
    cost, num_left = planned.cost, num_to_do + planned.num_tuned
    num_slots = min(planned.num_slots, num_left) or 1
    hours = num_left * cost.seconds / 3600
    slots = f", {hours / num_slots:.3g} h with {num_slots} at a time" if num_slots > 1 else ""
    yield f"time: {cost.seconds:.3g} s a run (by {cost.known_from}); {hours:.3g} h in all{slots}"
    yield from _memory("memory", cost.memory_bytes, num_slots)
    yield from _memory("GPU memory", cost.gpu_memory_bytes, 1)


def _memory(name: str, num_bytes: float | None, num_slots: int) -> Iterator[str]:
    if num_bytes is not None:
        together = f", {num_bytes * num_slots / 1e9:.3g} GB for {num_slots} at a time" if num_slots > 1 else ""
        yield f"{name}: {num_bytes / 1e9:.3g} GB a run at most{together}"


def _entry(run: PlannedRun, seen: dict[str, str]) -> PlannedEntry:
    if run.identity in seen:
        return PlannedEntry(run, f"the same as {seen[run.identity]}")
    try:
        row = read_row(run)
    except ConfigError as error:
        return PlannedEntry(run, f"refused: {error}")
    return PlannedEntry(run, TO_DO if row is None else DONE, row)


def _cost(
    entries: Sequence[PlannedEntry], to_do: Sequence[PlannedRun], progress: Progress, measure: Measure
) -> RunCost | None:
    rows = [entry.row for entry in entries if entry.row is not None]
    if not rows:
        return measure(to_do[-1], progress) if to_do else None  # tables end with what costs most

    def largest(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return max(known) * MIB if known else None

    seconds = [row.seconds if row.whole_seconds is None else row.whole_seconds for row in rows]
    return RunCost(
        seconds=sum(seconds) / len(rows),
        memory_bytes=largest([row.peak_memory_mib for row in rows]),
        gpu_memory_bytes=largest([row.peak_gpu_memory_mib for row in rows]),
        known_from=f"the {len(rows)} that are done",
    )

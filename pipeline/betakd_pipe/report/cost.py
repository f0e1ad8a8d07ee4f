"""What the runs and their cache cost: time, speed, memory, bytes, and the teacher's time spread over the runs."""

import json
from pathlib import Path

from betakd_cache import Manifest
from betakd_pipe.report.caches import GONE, read_cache
from betakd_pipe.report.records import Run, Runs
from betakd_pipe.report.tables import MISSING, Cell, Line, Table, summary_cell

RUN_NOTE = (
    "Seconds are those of the training alone, measurements and checkpoints in between included; memory is the most "
    "that a process ever held, on the host since it began, which with one worker for many runs is that of the largest. "
    "Times compare methods only where the machine did nothing else and all ran as many at a time."
)
CACHE_NOTE = (
    "The teacher’s seconds are those of all processes that wrote the cache, loading left out; caches of older versions "
    "and in object stores have none. A run’s share is that time divided by the runs shown here that read the cache."
)


SESSIONS = ".sessions.jsonl"
"""Beside a cache, as betakd_stages.caching.sessions names it, which would load torch."""


def run_cost_table(runs: Runs) -> Table:
    """One line per method, means over seeds."""
    lines = [
        Line(
            method,
            (
                summary_cell([run.row.seconds for run in of], 1),
                summary_cell([_steps_per_second(run) for run in of], 2),
                summary_cell([_last(run, "tokens_per_second") for run in of], 0),
                summary_cell([_largest(run, "peak_memory_mib") for run in of], 0),
                summary_cell([_largest(run, "peak_gpu_memory_mib") for run in of], 0),
            ),
        )
        for method, of in runs.items()
    ]
    headings = ("method", "seconds", "steps/s", "tokens/s, last", "peak memory MiB", "peak GPU memory MiB")
    kept = [place for place in range(5) if any(line.cells[place].text != MISSING for line in lines)]
    shown = tuple(Line(line.name, tuple(line.cells[place] for place in kept)) for line in lines)
    return Table("cost", (headings[0], *(headings[1 + place] for place in kept)), shown, RUN_NOTE)


def cache_cost_table(runs: Runs) -> Table | None:
    """One line per cache that is still where the runs found it; None where there is none."""
    readers: dict[str, int] = {}
    for of in runs.values():
        for run in of:
            for cache in run.caches:
                readers[cache] = readers.get(cache, 0) + 1
    found = {path: read_cache(path) for path in readers}
    lines = [_cache_line(path, found[path], readers[path]) for path in readers if found[path] != GONE]
    headings = (
        *("cache", "samples", "tokens", "MB", "bytes/token", "runs that read it"),
        *("teacher’s seconds", "teacher’s seconds per run"),
    )
    return Table("caches", headings, tuple(lines), CACHE_NOTE) if lines else None


def _cache_line(path: str, manifest: Manifest | str, num_readers: int) -> Line:
    seconds = teacher_seconds(Path(path))
    return Line(
        path,
        (
            *_size_cells(manifest),
            Cell(str(num_readers), num_readers),
            _number(seconds),
            _number(None if seconds is None else seconds / num_readers),
        ),
    )


def _size_cells(manifest: Manifest | str) -> tuple[Cell, ...]:
    if isinstance(manifest, str):
        return (Cell("cannot be read"), *[Cell(MISSING)] * 3)
    counts = manifest.counts
    return (
        Cell(f"{counts.num_samples:,}", counts.num_samples),
        Cell(f"{counts.num_tokens:,}", counts.num_tokens),
        Cell(f"{counts.size_bytes / 1e6:.2f}", counts.size_bytes / 1e6),
        _number(counts.size_bytes / counts.num_tokens if counts.num_tokens else None),
    )


def teacher_seconds(cache: Path) -> float | None:
    """The seconds that writing the cache took, of all processes together; None where that was not noted."""
    path = Path(f"{cache}{SESSIONS}")
    if not path.is_file():
        return None
    sessions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return float(sum(session["seconds"] for session in sessions))


def _number(value: float | None) -> Cell:
    return Cell("not noted") if value is None else Cell(f"{value:.1f}", value)


def _steps_per_second(run: Run) -> float | None:
    return run.timings[-1]["step"] / run.row.seconds if run.timings and run.row.seconds else None


def _last(run: Run, name: str) -> float | None:
    return run.timings[-1].get(name) if run.timings else None


def _largest(run: Run, name: str) -> float | None:
    return max((row[name] for row in run.timings if name in row), default=None)

"""What many runs cost as one ablation, against the same runs as commands of their own.

    python benchmarks/ablation_cost.py [--runs N] [--rounds N] [--quick] [--json FILE]

`betakd-pipe ablate --jobs 1` of so many runs (one method, a seed each) against the sum of as many `betakd-pipe distill`
commands with the same settings, each a process that is timed alone. Which of the two goes first alternates from round
to round. The ablation evaluates every student as well, which `distill` does not. CPU seconds of all processes stand
beside the wall-clock's: on a machine that others use they tell more.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from betakd_stages.caching.run import cache_teacher
from betakd_stages.models.tiny import STUDENT_SIZE, TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings

QUESTION_TYPES = ("which", "even")
TYPES = f"types={'+'.join(QUESTION_TYPES)}"
DATA = f"digits:transfer?{TYPES}"
QUICK_STEPS = 5


def main() -> None:
    arguments = parsed_arguments()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(arguments, Path(name))
    show(rows, arguments.runs)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def parsed_arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two runs of a few steps, once: does everything run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.rounds = 2, 1
    return arguments


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row per round."""
    settings = prepared(folder)
    if arguments.quick:
        settings["training.steps"] = QUICK_STEPS
    rows = []
    for round_number in range(arguments.rounds):
        out = folder / f"round-{round_number}"
        kinds = ["ablate", "distill"] if round_number % 2 == 0 else ["distill", "ablate"]
        row: dict[str, Any] = {"round": round_number, "first": kinds[0], "runs": arguments.runs}
        for kind in kinds:
            commands = COMMANDS[kind](settings, out, arguments.runs)
            row[f"{kind}_s"], row[f"{kind}_cpu_s"] = seconds_of(commands)
        row["ratio"] = row["ablate_s"] / row["distill_s"]
        row["cpu_ratio"] = row["ablate_cpu_s"] / row["distill_cpu_s"]
        rows.append(row)
    return rows


def prepared(folder: Path) -> dict[str, Any]:
    """Settings of stage two by dotted key; teacher, cache and student are made. What the teacher knows is no matter."""
    teacher = save_tiny_model(folder / "teacher", TEACHER_SIZE, 1, QUESTION_TYPES)
    student = save_tiny_model(folder / "student", STUDENT_SIZE, 2, QUESTION_TYPES)
    caching = CacheTeacherSettings(teacher=str(teacher), data=DATA, batch_size=128)
    cache_teacher(caching, folder / "cache", progress=SilentProgress())
    return {"student": str(student), "cache": str(folder / "cache"), "data": DATA, "weighting.name": "instance"}


def ablation(settings: dict[str, Any], out: Path, num_runs: int) -> list[list[str]]:
    """The command of one ablation of so many seeds."""
    inputs = {"student", "cache", "data"}
    spec = {key: settings[key] for key in inputs} | {
        "recipe": "digits",
        "seeds": list(range(num_runs)),
        "evaluate": {"benchmark": f"digits?{TYPES}", "batch_size": 512, "max_new_tokens": 4},
        "methods": {"instance": {}},
    }
    out.mkdir(exist_ok=True)
    (out / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")  # JSON is YAML
    others = [f"base.{key}={value}" for key, value in settings.items() if key not in inputs]
    return [["ablate", str(out / "spec.yaml"), "--jobs", "1", "--out", str(out / "ablation"), *sets(others)]]


def single_runs(settings: dict[str, Any], out: Path, num_runs: int) -> list[list[str]]:
    """So many commands, one after the other."""
    flags = ["distill", "--recipe", "digits", *sets([f"{key}={value}" for key, value in settings.items()])]
    return [[*flags, "--seed", str(seed), "--out", str(out / f"distill-{seed}")] for seed in range(num_runs)]


COMMANDS = {"ablate": ablation, "distill": single_runs}


def sets(assignments: Sequence[str]) -> list[str]:
    """The flags of these assignments."""
    return [part for assignment in assignments for part in ("--set", assignment)]


def seconds_of(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Seconds of the clock and of the CPU that commands of betakd-pipe took, one after the other.

    Raises CalledProcessError where one fails.
    """
    start_s, start_cpu_s = time.perf_counter(), cpu_seconds()
    for arguments in commands:
        subprocess.run([sys.executable, "-m", "betakd_pipe", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start_s, cpu_seconds() - start_cpu_s


def cpu_seconds() -> float:
    """Of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(rows: Sequence[dict[str, Any]], num_runs: int) -> None:
    """Print the rows."""
    table = Table(
        "round", "first", f"ablate of {num_runs}: s", "CPU s", f"{num_runs} distill: s", "CPU s", "ratio", "CPU"
    )
    for row in rows:
        seconds = [f"{row[name]:.1f}" for name in ("ablate_s", "ablate_cpu_s", "distill_s", "distill_cpu_s")]
        table.add_row(str(row["round"]), row["first"], *seconds, f"{row['ratio']:.3f}", f"{row['cpu_ratio']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""Whether trust fitted to the cache helps where teachers are wrong: students by every weighting, on digits.

    python benchmarks/trust.py [--scenarios D1,D2,D3,D4,D6,clean] [--seeds 5] [--first-seed 0] [--answers word]
                               [--weights 0.3,1,3,10,30] [--quick] [--out FOLDER] [--json FILE]

Teachers, caches and students are those of the demo (280 steps of 64 samples). Weights, where a method says "tuned", are
chosen per scenario by the mean accuracy on the validation part, whose labels are as noisy as those of the transfer
part; the test, whose labels are right, is shown for what was chosen. A run takes some 10 seconds of one core; what is
in --out already is not run again.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.run import Ablation, run_ablations
from betakd_pipe.ablation.spec import AblationSpec
from betakd_pipe.config import load_settings
from betakd_pipe.demo import RECIPE
from betakd_pipe.progress import terminal_progress
from betakd_pipe.scenarios import SCENARIOS, TEACHER_STEPS, Scenario, filled_in, prepare_all

QUICK_STEPS = 60
TUNED = {"fixed": "fixed, tuned", "robust": "robust, tuned"}
Scores = dict[str, list[float]]
"""Accuracy in percent of each method, one number per seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--answers", choices=["word", "sentence"], default="word")
    parser.add_argument("--weights", default="0.3,1,3,10,30", help="among which tuned methods choose; 10 among them")
    parser.add_argument("--quick", action="store_true", help="short runs of students and teachers: nothing converges")
    parser.add_argument("--out", type=Path, default=Path("trust"), help="folder of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    scenarios = [
        dataclasses.replace(SCENARIOS[name], answers=arguments.answers) for name in arguments.scenarios.split(",")
    ]
    weights = [float(weight) for weight in arguments.weights.split(",")]
    rows = measure(scenarios, seeds, weights, arguments.out, arguments.quick)
    for scenario in scenarios:
        show(scenario, [row for row in rows if row["scenario"] == scenario.name])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(
    scenarios: Sequence[Scenario], seeds: Sequence[int], weights: Sequence[float], out: Path, quick: bool
) -> list[dict[str, Any]]:
    """One row per scenario and method."""
    progress = terminal_progress()
    prepare_all(scenarios, out, seeds, QUICK_STEPS if quick else TEACHER_STEPS, progress)
    ablations = [ablation(scenario, out / scenario.name, seeds, weights, quick) for scenario in scenarios]
    results = run_ablations(ablations, progress=progress)
    rows = []
    for scenario, result in zip(scenarios, results, strict=True):
        if result.failures:
            raise SystemExit("\n".join(f"{run} failed: {reason}" for run, reason in result.failures.items()))
        rows += [{"scenario": scenario.name, **row} for row in compared(result.rows, weights)]
    return rows


def ablation(scenario: Scenario, folder: Path, seeds: Sequence[int], weights: Sequence[float], quick: bool) -> Ablation:
    """Every method in one scenario, trained as in the demo."""
    demo = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    values = {
        **filled_in(scenario, folder),
        "seeds": list(seeds),
        "recipe": demo["recipe"],
        "methods": methods(demo["methods"], weights),
    }
    steps = [f"base.training.steps={QUICK_STEPS}"] if quick else []
    return Ablation(load_settings(AblationSpec, None, values, steps), folder)


def methods(of_demo: dict[str, Any], weights: Sequence[float]) -> dict[str, Any]:
    """Settings by name: labels alone, the demo's learned weights, and every given weight, fixed and by trust."""
    given = {
        f"{name}-{weight:g}": {
            "objective": {"energies": ["fkl"]},
            "weighting": {"name": name, "options": {"beta": weight}},
        }
        for name in TUNED
        for weight in weights
    }
    return {"ce": of_demo["ce"], "task": of_demo["fkl-task"], "instance": of_demo["fkl-instance"], **given}


def compared(results: Sequence[ResultRow], weights: Sequence[float]) -> list[dict[str, Any]]:
    """One row per method that is reported, tuned ones by the weight that validation chose."""
    test, validation = (
        {
            method: [figure(row) for row in results if row.method == method]
            for method in dict.fromkeys(row.method for row in results)
        }
        for figure in (lambda row: row.accuracy, lambda row: row.validation_accuracy)
    )
    chosen = {name: best_weight(validation, name, weights) for name in TUNED}
    reported = {"ce": "ce", "task": "task", "instance": "instance", "robust-10": "robust-10"}
    reported |= {title: f"{name}-{chosen[name]:g}" for name, title in TUNED.items()}
    return [
        {
            "method": title,
            "weight": float(run.partition("-")[2]) if "-" in run else None,
            "test": test[run],
            "validation": validation[run],
            "to_ce": paired(test[run], test["ce"]),
            "to_tuned": paired(test[run], test[reported[TUNED["fixed"]]]),
        }
        for title, run in reported.items()
    ]


def best_weight(validation: Scores, name: str, weights: Sequence[float]) -> float:
    """The weight with the largest mean accuracy on the validation part, the least of several."""
    means = {weight: statistics.fmean(validation[f"{name}-{weight:g}"]) for weight in weights}
    return max(means, key=lambda weight: (means[weight], -weight))


def paired(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the difference over seeds; the error of one seed is NaN."""
    differences = [one - other for one, other in zip(left, right, strict=True)]
    return statistics.fmean(differences), standard_error(differences)


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def show(scenario: Scenario, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of a scenario."""
    table = Table(title=f"{scenario.name}: {scenario.description}", title_justify="left")
    for title in ("method", "weight", "test, %", "sd", "se", "to ce", "to fixed, tuned"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for row in rows:
        test = row["test"]
        table.add_row(
            row["method"],
            "" if row["weight"] is None else f"{row['weight']:g}",
            f"{statistics.fmean(test):.1f}",
            f"{statistics.stdev(test):.1f}" if len(test) > 1 else "",
            f"{standard_error(test):.1f}",
            *(f"{row[key][0]:+.1f} ± {row[key][1]:.1f}" for key in ("to_ce", "to_tuned")),
        )
    Console().print(table)


if __name__ == "__main__":
    main()

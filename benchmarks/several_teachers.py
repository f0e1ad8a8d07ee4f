"""Students of two specialists, each of which knows two of four question types, by every way to put them together.

    python benchmarks/several_teachers.py [--seeds 5] [--first-seed 0] [--weights 3,10] [--quick] [--out FOLDER]
                                          [--json FILE]

Teachers, caches and students are those of the demo, with 20 % of the transfer labels wrong; what a specialist never saw
it answers wrongly, and surely. The fixed weight of each row is chosen by the mean accuracy on the validation part, with
labels as noisy; the test's are right. The last rows are no students: the specialists themselves, and the average of
their weights, which began as one network. A run takes some 10 seconds of one core; what is in --out already is not run
again.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from betakd_pipe.ablation.run import Ablation, run_ablations
from betakd_pipe.ablation.spec import AblationSpec
from betakd_pipe.config import load_settings
from betakd_pipe.demo import RECIPE
from betakd_pipe.progress import terminal_progress
from betakd_pipe.scenarios import D3, QUESTION_TYPES, TEACHER_STEPS, evaluation_of, filled_in, prepare_all
from betakd_pipe.stage_runs import evaluate, load_stages
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import EvaluateSettings
from trust import QUICK_STEPS, Scores, best_weight, paired, standard_error

FIRST = dataclasses.replace(D3, name="first", teacher_types=QUESTION_TYPES[:2])
SECOND = dataclasses.replace(D3, name="second", teacher_types=QUESTION_TYPES[2:])
RULES = ("uniform", "entropy", "confidence", "trust", "learned")
TITLES = {
    "ce": "labels alone",
    "first": "the first specialist alone",
    "second": "the second specialist alone",
    **{rule: f"mixture, {rule}" for rule in RULES},
    "robust": "mixture, trust; robust weights",
    "channels": "a channel each",
    "prior": "mixture of priors",
    "channels-task": "a channel each, task weights",
    "prior-task": "mixture of priors, task weights",
    "large": "mixture, learned; student of a specialist's size",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--weights", default="3,10", help="among which a fixed weight is chosen")
    parser.add_argument("--quick", action="store_true", help="short runs of students and teachers: nothing converges")
    parser.add_argument("--out", type=Path, default=Path("several-teachers"), help="folder of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    weights = [float(weight) for weight in arguments.weights.split(",")]
    rows = measure(arguments.out, seeds, weights, arguments.quick)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(out: Path, seeds: Sequence[int], weights: Sequence[float], quick: bool) -> list[dict[str, Any]]:
    """One row per way."""
    progress = terminal_progress()
    prepare_all([FIRST, SECOND], out, seeds, QUICK_STEPS if quick else TEACHER_STEPS, progress)
    (result,) = run_ablations([ablation(out, seeds, weights, quick)], progress=progress)
    if result.failures:
        raise SystemExit("\n".join(f"{run} failed: {reason}" for run, reason in result.failures.items()))
    runs = dict.fromkeys(row.method for row in result.rows)
    test: Scores = {run: [row.accuracy for row in result.rows if row.method == run] for run in runs}
    validation: Scores = {
        run: [row.validation_accuracy for row in result.rows if row.method == run]  # type: ignore[misc]
        for run in runs
    }
    rows = [compared(way, test, validation, weights) for way in TITLES]
    specialists = {
        f"{name} specialist itself": [teacher_accuracy(out / name / f"seed-{seed}") for seed in seeds]
        for name in ("first", "second")
    }
    averaged = [average_accuracy(out, seed) for seed in seeds]
    return rows + [
        {"way": name, "weight": None, "test": found, "to_ce": paired(found, test["ce"])}
        for name, found in {**specialists, "average of the specialists' weights": averaged}.items()
    ]


def ablation(out: Path, seeds: Sequence[int], weights: Sequence[float], quick: bool) -> Ablation:
    """Every way, trained as in the demo."""
    demo = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    values = {
        **filled_in(FIRST, out / "first"),
        "seeds": list(seeds),
        "recipe": demo["recipe"],
        "methods": methods(out, weights),
    }
    steps = [f"base.training.steps={QUICK_STEPS}"] if quick else []
    return Ablation(load_settings(AblationSpec, None, values, steps), out / "students")


def methods(out: Path, weights: Sequence[float]) -> dict[str, Any]:
    """Settings by name; of what has a fixed weight, one for each weight."""
    caches = [f"{out}/{name}/seed-{{seed}}/cache" for name in ("first", "second")]
    energies = {"objective": {"energies": ["fkl"]}}

    def together(**ensemble: str) -> dict[str, Any]:
        return {"cache": caches, "ensemble": ensemble, **energies}

    fixed = {
        "first": {"cache": caches[0], **energies},
        "second": {"cache": caches[1], **energies},
        **{rule: together(weighting=rule) for rule in RULES},
        "channels": together(combine="channels"),
        "prior": together(combine="prior"),
        "large": {**together(weighting="learned"), "student": f"{out}/first/seed-{{seed}}/untrained-teacher"},
    }
    tried = {
        f"{way}-{weight:g}": {**settings, "weighting": {"name": "fixed", "options": {"beta": weight}}}
        for way, settings in fixed.items()
        for weight in weights
    }
    robust = {
        f"robust-{weight:g}": {
            **together(weighting="trust"),
            "weighting": {"name": "robust", "options": {"beta": weight}},
        }
        for weight in weights
    }
    return {
        "ce": {"objective": {"energies": []}, "weighting": {"name": "fixed"}},
        **tried,
        **robust,
        "channels-task": {**together(combine="channels"), "weighting": {"name": "task"}},
        "prior-task": {**together(combine="prior"), "weighting": {"name": "task"}},
    }


def compared(way: str, test: Scores, validation: Scores, weights: Sequence[float]) -> dict[str, Any]:
    """The row of a way, with the weight that validation chose where it has one."""
    weight = None if way in test else best_weight(validation, way, weights)
    run = way if weight is None else f"{way}-{weight:g}"
    return {"way": TITLES[way], "weight": weight, "test": test[run], "to_ce": paired(test[run], test["ce"])}


def teacher_accuracy(folder: Path) -> float:
    scores: Mapping[str, Any] = json.loads((folder / "teacher-evaluation" / "scores.json").read_text(encoding="utf-8"))
    return float(scores["accuracy"])


def average_accuracy(out: Path, seed: int) -> float:
    """Of the network whose weights are the means of both specialists'."""
    folder = out / "average" / f"seed-{seed}"
    models = [out / name / f"seed-{seed}" / "teacher" / "model" for name in ("first", "second")]
    shutil.copytree(models[0], folder / "model", dirs_exist_ok=True)
    one, other = (load_file(model / "model.safetensors") for model in models)
    mean = {name: torch.stack([one[name], other[name]]).mean(dim=0) for name in one}
    save_file(mean, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    settings = EvaluateSettings(model=str(folder / "model"), **evaluation_of(FIRST))
    scores = evaluate(settings, folder / "evaluation", progress=SilentProgress(), stages=load_stages())
    return float(scores["accuracy"])


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="Two specialists, 20 % of the labels wrong", title_justify="left")
    for title in ("way", "weight", "test, %", "sd", "over labels alone"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for row in rows:
        test, (gain, error) = row["test"], row["to_ce"]
        table.add_row(
            row["way"],
            "" if row["weight"] is None else f"{row['weight']:g}",
            f"{statistics.fmean(test):.1f}",
            f"{standard_error(test) * len(test) ** 0.5:.1f}",
            f"{gain:+.1f} ± {error:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

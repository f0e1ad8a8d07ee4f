"""What was set up: how many questions and samples, how large the models are, what is wrong on purpose."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from betakd_pipe.config import read_layer
from betakd_pipe.report.caches import GONE, read_cache
from betakd_pipe.report.comparisons import MANUAL, mean_accuracies
from betakd_pipe.report.records import ReportScenario, Run, Runs, teacher_evaluations
from betakd_pipe.report.tables import Table, text_table
from betakd_pipe.run_folder import CONFIG, MODEL

MANUAL_BATCHES = 16
"""Those that manual weights are measured on where the settings do not say."""
MANY = 3
NO_LABELS_ALONE = "no method here; one would be ce: {objective: {energies: []}}"


def setup_table(scenario: ReportScenario, runs: Runs) -> Table:
    """A line per fact; what cannot be known any more, or does not apply, is left out."""
    every = [run for of in runs.values() for run in of]
    facts = {
        "test questions": _several(f"{len(run.predictions):,}" for run in every),
        "training": _several(_training(run) for run in every),
        "training samples": _several(_num_cached(run) for run in every),
        "wrong on purpose": _several(_faults(run) for run in every),
        "student": _several(_parameters(run.row.run / MODEL) for run in every),
        "teacher": _several(_parameters(_teacher(folder)) for folder in teacher_evaluations(scenario).values()),
        "labels alone": _labels_alone(runs),
        "manual weights": _several(_manual(run) for run in every if run.weighting == MANUAL),
    }
    return text_table("setup", ("set-up", "what it was"), [(name, text) for name, text in facts.items() if text])


def _several(texts: Iterable[str]) -> str:
    """The texts that differ, as one; a hint where they are many."""
    different = list(dict.fromkeys(text for text in texts if text))
    return "; ".join(different) if len(different) <= MANY else f"{len(different)} different: see the settings below"


def _training(run: Run) -> str:
    if not run.timings:
        return ""
    training, steps = run.settings["training"], f"{run.timings[-1]['step']:,} steps"
    if together := training.get("global_batch_size"):
        return f"{steps} of {together} samples"
    # How many processes there were is not known: it is no setting, and a run may go on with another number.
    return f"{steps} of {training['batch_size'] * training.get('accumulation', 1)} samples in each process"


def _num_cached(run: Run) -> str:
    found = [each for each in map(read_cache, run.caches) if each != GONE]
    counts = ["?" if isinstance(each, str) else f"{each.counts.num_samples:,}" for each in found]
    unread = " (a cache cannot be read: see the settings below)" if "?" in counts else ""
    return f"{' and '.join(counts)} in the teacher’s cache{unread}" if counts else ""


def _faults(run: Run) -> str:
    from betakd_stages.data.digits import faults  # imports Pillow
    from betakd_stages.data.specification import parse_specification

    data = parse_specification(run.settings["data"])
    return "; ".join(faults(data)) if data.name == "digits" else ""


def _teacher(evaluation: Path) -> Path:
    """The folder of the teacher that an evaluation is of."""
    config = evaluation / CONFIG
    named = Path(read_layer(config).values["model"]) if config.is_file() else evaluation
    return named / MODEL if (named / MODEL).is_dir() else named


def _parameters(folder: Path) -> str:
    """How many numbers the weights in a model folder are; nothing where it holds none that can be counted."""
    from safetensors import safe_open

    shapes: list[Sequence[Any]] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    number = sum(math.prod(shape) for shape in shapes)
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit} parameters"
    return f"{number} parameters" if number else ""


def _labels_alone(runs: Runs) -> str:
    """The best method without any energy, or how to have one, among several methods."""
    accuracies = mean_accuracies(runs)
    plain = sorted(
        (method for method, of in runs.items() if not of[0].channels), key=lambda method: -accuracies[method]
    )
    if plain:
        return f"{plain[0]}, accuracy {accuracies[plain[0]]:.1f} %"
    return NO_LABELS_ALONE if len(runs) > 1 else ""


def _manual(run: Run) -> str:
    num_batches = run.settings["weighting"].get("options", {}).get("num_batches", MANUAL_BATCHES)
    return (
        f"the mean cross-entropy divided by the energy’s mean over the first {num_batches} batches, before the first "
        "step; constant from then on"
    )

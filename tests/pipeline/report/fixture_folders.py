"""Ablation folders as stage two and the evaluation leave them: small, synthetic, the same on every call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from betakd_cache.layout import CacheRules
from betakd_cache.manifest import Manifest
from betakd_cache.token_rule import TokenRule
from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.report import ReportScenario
from betakd_stages.data import SampleSet, load_samples
from betakd_stages.settings import DistillSettings

CATEGORIES = ("which", "even", "greater", "prime")
NUM_QUESTIONS = 80
DATA = "digits:transfer?label_noise=0.3"


@dataclass(frozen=True, slots=True)
class Method:
    """What a synthetic method is like: its accuracy in percent, and how large its beta ends (none: no energies)."""

    accuracy: float
    final_beta: float | None
    weighting: str = "fixed"


METHODS: Mapping[str, Method] = {
    "ce": Method(68.0, None),
    "fkl-fixed-1": Method(86.0, 1.0),
    "fkl-task": Method(90.0, 2.9, "task"),
    "fkl-instance": Method(91.0, 35.0, "instance"),
}


def make_scenario(
    root: Path,
    name: str = "D1",
    methods: Mapping[str, Method] = METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    num_steps: int = 800,
    num_questions: int = NUM_QUESTIONS,
) -> ReportScenario:
    """A scenario whose folder `root`/NAME holds the runs, caches and teacher evaluations of all seeds."""
    folder = root / name
    rows = []
    for seed in seeds:
        benchmark = f"digits:test?count={num_questions}&seed={seed}&types={'+'.join(CATEGORIES)}"
        write_evaluation(folder / f"seed-{seed}" / "teacher-evaluation", benchmark, 92.0, [seed, 99])
        write_cache(folder / f"seed-{seed}" / "cache", seed)
        for index, (method, traits) in enumerate(methods.items()):
            run = folder / f"seed-{seed}" / "runs" / method
            rows.append(write_run(run, folder, method, traits, seed, benchmark, num_steps, [seed, index]))
    rows.sort(key=lambda row: list(methods).index(row.method))
    return ReportScenario(name, "30 % of the transfer labels are wrong, on all question types.", rows, folder)


def write_run(
    run: Path, folder: Path, method: str, traits: Method, seed: int, benchmark: str, num_steps: int, noise: list[int]
) -> ResultRow:
    """The row of a run folder with configuration, metrics and evaluation."""
    run.mkdir(parents=True)
    settings = DistillSettings.model_validate(
        {
            "student": "student",
            "cache": str(folder / f"seed-{seed}" / "cache"),
            "data": DATA,
            "seed": seed,
            "objective": {"energies": [] if traits.final_beta is None else ["fkl"]},
            "weighting": {"name": traits.weighting},
            "training": {"steps": num_steps},
        }
    )
    (run / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), "utf-8")
    metrics = metric_rows(traits, num_steps, noise)
    write_lines(run / "metrics.jsonl", metrics)
    timing = {"seconds_per_step": 0.01, "tokens_per_second": 900.0, "peak_memory_mib": 700}
    write_lines(run / "timings.jsonl", [{"step": row["step"], **timing} for row in metrics])
    write_lines(run / "probe.jsonl", probe_rows(traits, num_steps, noise))
    scores = write_evaluation(run / "evaluation", benchmark, traits.accuracy, noise)
    final = {key: value for key, value in metrics[-1].items() if key != "step" and value is not None}
    return ResultRow(
        method=method,
        seed=seed,
        accuracy=scores["accuracy"],
        accuracy_by_category=scores["accuracy_by_category"],
        agreement=scores["accuracy"] - 2.5,
        expected_calibration_error=scores["expected_calibration_error"],
        metrics={**final, "validation_accuracy": scores["accuracy"] + 1.25},
        seconds=6.0 + 0.25 * seed,
        run=run,
    )


def metric_rows(traits: Method, num_steps: int, noise: list[int]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, one every 20 steps, with the keys that stage two writes."""
    generator = np.random.default_rng(noise)
    rows = []
    for step in range(20, num_steps + 1, 20):
        share = step / num_steps
        wobble = float(generator.normal(1.0, 0.06))
        row: dict[str, Any] = {
            "step": step,
            "cross_entropy": (0.25 + 2.0 * float(np.exp(-6 * share))) * wobble,
            "teacher_entropy": 0.12,
            "learning_rate": 5e-3 * (1 - share),
        }
        if traits.final_beta is not None:
            energy = (0.02 + 1.2 * float(np.exp(-5 * share))) * wobble
            beta = 1.0 if traits.weighting == "fixed" else float(traits.final_beta**share)
            spread = 2.0 if traits.weighting == "instance" else 1.0
            row |= {"energy/fkl": energy, "weighted/fkl": beta * energy, "beta/fkl": beta, "beta/fkl/q50": beta}
            row |= {"beta/fkl/q10": beta / spread, "beta/fkl/q90": beta * spread}
            row["entropy_correlation/fkl"] = 0.5 * share * wobble if traits.weighting == "instance" else None
        rows.append(row)
    return rows


def probe_rows(traits: Method, num_steps: int, noise: list[int]) -> list[dict[str, Any]]:
    """Rows of probe.jsonl at five moments: the student's entropy falls, weights follow the teacher's where they are
    of samples, and log-probabilities come nearer to the teacher's."""
    generator = np.random.default_rng([*noise, 3])
    ids = [sample.sample_id for sample in benchmark_samples(DATA).samples[:20]]
    teacher = generator.uniform(0.05, 1.0, len(ids))
    rows = []
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        student = 3.0 * (1 - share) + generator.uniform(0.1, 0.4, len(ids))
        samples = {"sample_id": ids, "cross_entropy": student.tolist(), "teacher_entropy": teacher.tolist()}
        samples["student_entropy"] = student.tolist()
        if traits.final_beta is not None:
            scale = 1.0 if traits.weighting == "fixed" else traits.final_beta**share
            betas = scale * (1 + share * teacher) if traits.weighting == "instance" else np.full(len(ids), scale)
            samples |= {"energy/fkl": (1.2 - share * teacher).tolist(), "beta/fkl": betas.tolist()}
        compared = {
            "num_entries": 8,
            "teacher_mean": -3.0,
            "student_mean": -3.0 + 2 * (1 - share),
            "wasserstein_1": 2.25 - 2 * share,
            "bin_edges": [-6.0, -4.0, -2.0, 0.0],
            "teacher_counts": [0, 6, 2],
            "student_counts": [0, 2, 6] if share < 1 else [0, 6, 2],
        }
        rows.append({"step": round(share * num_steps), "samples": samples, "log_probabilities": compared})
    return rows


@cache
def benchmark_samples(benchmark: str) -> SampleSet:
    """The questions of a benchmark; drawing them takes a tenth of a second."""
    return load_samples(benchmark)


def write_evaluation(folder: Path, benchmark: str, accuracy: float, noise: list[int]) -> dict[str, Any]:
    """The scores of answers that are right with the given probability in percent, written with the predictions."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng([*noise, 7])
    predictions = []
    for sample in benchmark_samples(benchmark):
        label = sample.turns[0].answer
        correct = bool(generator.random() < accuracy / 100)
        wrong = {"yes": "no", "no": "yes"}.get(label) or str((int(label) + int(generator.integers(1, 10))) % 10)
        predictions.append(
            {
                "sample_id": sample.sample_id,
                "category": sample.category,
                "question": sample.turns[0].question,
                "label": label,
                "answer": label if correct else wrong,
                "confidence": float(generator.uniform(0.5, 1.0)),
                "correct": correct,
            }
        )
    write_lines(folder / "predictions.jsonl", predictions)
    by_category = {
        name: [bool(each["correct"]) for each in predictions if each["category"] == name] for name in CATEGORIES
    }
    scores = {
        "benchmark": benchmark,
        "accuracy": 100 * float(np.mean([each["correct"] for each in predictions])),
        "accuracy_by_category": {name: 100 * float(np.mean(flags)) for name, flags in by_category.items() if flags},
        "expected_calibration_error": float(generator.uniform(0.01, 0.2)),
    }
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    return scores


def write_cache(folder: Path, seed: int) -> None:
    """A cache of which only the manifest is there: the report reads nothing else."""
    identity = {
        "teacher": {"model_type": "llava", "weights_sha256": f"{seed}" * 64},
        "data": {"specification": DATA, "num_samples": 2000},
    }
    rules = CacheRules(token_rule=TokenRule(), vocabulary_size=34, feature_sizes={"vision": 64}, logit_moments=True)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(Manifest(identity, rules, state="complete").to_bytes())


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

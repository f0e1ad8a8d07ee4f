"""`betakd-pipe demo`: both stages on real handwritten digits, several methods from one cache, a table and a report.

Teachers and students are tiny models in a real architecture; what is injected (label noise, a teacher that is ignorant
of some questions) is said in the report. The spec.yaml in a scenario's folder is for `betakd-pipe ablate`.
    D1  a good teacher; 30 % of the transfer labels wrong
    D2  a teacher that learned nothing about two question types; 40 % of the labels of the other two types wrong
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.run import Ablation, AblationResult, run_ablations
from betakd_pipe.ablation.spec import AblationSpec
from betakd_pipe.ablation.table import print_table
from betakd_pipe.ablation.workers import worker_pool
from betakd_pipe.config import load_settings
from betakd_pipe.demo_results import conclusions, teacher_rows, write_demo_results
from betakd_pipe.stage_runs import load_stages
from betakd_stages.errors import ConfigError
from betakd_stages.progress import Progress, SilentProgress
from betakd_stages.settings import (
    CacheTeacherSettings,
    DistillSettings,
    EvaluateSettings,
    ObjectiveSettings,
    TrainingSettings,
    WeightingSettings,
)

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
QUESTION_TYPES = ("which", "even", "greater", "prime")
TYPES_OPTION = f"types={'+'.join(QUESTION_TYPES)}"
QUICK_STEPS = 60


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is wrong with the labels, and what with the teacher."""

    name: str
    description: str
    transfer_noise: str
    teacher_noise: str = ""

    def data(self, split: str, seed: int | str) -> str:
        """The data specification of a split; labels are clean except in teacher, transfer and validation."""
        noise = {"teacher": self.teacher_noise, "transfer": self.transfer_noise, "validation": self.transfer_noise}
        return f"digits:{split}?{TYPES_OPTION}&seed={seed}{noise[split]}"


SCENARIOS = (
    Scenario(
        "D1",
        "A good teacher; 30 % of the transfer labels are wrong.",
        transfer_noise="&label_noise=0.3",
    ),
    Scenario(
        "D2",
        "40 % of the transfer labels of two question types (which, even) are wrong, and the teacher is ignorant of the "
        "two others (greater, prime): half of its own labels there were flipped.",
        transfer_noise="&label_noise=0.4&noisy_types=which+even",
        teacher_noise="&label_noise=0.5&noisy_types=greater+prime",
    ),
)


def run_demo(
    out: Path,
    seeds: Sequence[int],
    quick: bool,
    progress: Progress,
    energies: Sequence[str] = (),
    weighting: str | None = None,
) -> int:
    """The exit code; writes `out`/report.html, results.csv and the runs of each scenario and seed.

    `energies` and `weighting` by name make one method more than the recipe's. Raises ConfigError for no seed, for
    unknown names, or where `out` holds the runs of other settings.
    """
    if not seeds:
        raise ConfigError("--seeds names no seed: give some, such as 0,1,2")
    added = added_method(energies, weighting)
    _prepare_all(out, seeds, quick, progress)
    ablations = [_ablation(scenario, out / scenario.name, seeds, quick, added) for scenario in SCENARIOS]
    results = run_ablations(ablations, progress=progress)
    rows = {
        scenario.name: [*teacher_rows(out / scenario.name, seeds), *result.rows]
        for scenario, result in zip(SCENARIOS, results, strict=True)
    }
    write_demo_results(out, rows)
    return _show(out, rows, results, quick)


def added_method(energies: Sequence[str], weighting: str | None) -> dict[str, Any]:
    """The method `ENERGIES-WEIGHTING` as the recipe would hold it, fkl or task where only one is named; none for none.

    Raises ConfigError for an unknown name, listing the valid ones.
    """
    from betakd_stages.choices import pick
    from betakd_stages.energies import ENERGIES
    from betakd_stages.weightings import WEIGHTINGS

    if not energies and weighting is None:
        return {}
    energies, weighting = energies or ["fkl"], weighting or "task"
    for energy in energies:
        pick("energy", ENERGIES, energy)
    pick("weighting", WEIGHTINGS, weighting)
    name = f"{'+'.join(energies)}-{weighting}"
    return {name: {"objective": {"energies": list(energies)}, "weighting": {"name": weighting}}}


def _prepare_all(out: Path, seeds: Sequence[int], quick: bool, progress: Progress) -> None:
    """Train, evaluate and run the teacher of every scenario and seed, in worker processes."""
    tasks = [(scenario, out / scenario.name / f"seed-{seed}", seed, quick) for scenario in SCENARIOS for seed in seeds]
    progress.start("teachers and caches", total=len(tasks))
    try:
        with worker_pool(os.cpu_count() or 1) as pool:
            for future in as_completed([pool.submit(prepare, *task) for task in tasks]):
                future.result()
                progress.advance()
    finally:
        progress.finish()


def prepare(scenario: Scenario, folder: Path, seed: int, quick: bool) -> None:
    """Fill `folder` with teacher/, teacher-evaluation/, cache/ and the student to start from; what is there is kept."""
    from betakd_pipe import stage_runs
    from betakd_stages.models.tiny import STUDENT_SIZE, TEACHER_SIZE, save_tiny_model

    silent, stages = SilentProgress(), load_stages()
    for name, size in (("untrained-teacher", TEACHER_SIZE), ("student", STUDENT_SIZE)):
        if not (folder / name / "preprocessor_config.json").is_file():
            save_tiny_model(folder / name, size, seed, QUESTION_TYPES)
    teacher = DistillSettings(
        student=str(folder / "untrained-teacher"),
        data=scenario.data("teacher", seed),
        seed=seed,
        objective=ObjectiveSettings(energies=()),
        weighting=WeightingSettings(name="fixed"),
        training=TrainingSettings(
            steps=QUICK_STEPS if quick else 200,
            batch_size=64,
            learning_rate=2e-3,
            train_vision_tower=True,
            log_every_steps=20,
            num_threads=1,
        ),
    )
    stage_runs.distill(teacher, folder / "teacher", progress=silent, stages=stages)
    evaluation = EvaluateSettings(model=str(folder / "teacher"), **_evaluation())
    stage_runs.evaluate(evaluation, folder / "teacher-evaluation", progress=silent, stages=stages)
    caching = CacheTeacherSettings(
        teacher=str(folder / "teacher"),
        data=scenario.data("transfer", seed),
        batch_size=128,
        temperatures=(0.5, 1.0, 2.0, 5.0),  # so that every energy can be tried against these caches
    )
    stage_runs.cache_teacher(caching, folder / "cache", overwrite=False, progress=silent)


def _evaluation() -> dict[str, Any]:
    return {"benchmark": f"digits?{TYPES_OPTION}", "batch_size": 512, "max_new_tokens": 4}


def _ablation(
    scenario: Scenario, folder: Path, seeds: Sequence[int], quick: bool, added: Mapping[str, Any]
) -> Ablation:
    """The recipe and an added method with the scenario's data and folders filled in."""
    tuning = [f"methods.fkl-fixed-tuned.tune.seed={seeds[0]}"]
    steps = [f"base.training.steps={QUICK_STEPS}"] if quick else []
    flags = {
        "seeds": list(seeds),
        "methods": added or None,
        "student": f"{folder}/seed-{{seed}}/student",
        "cache": f"{folder}/seed-{{seed}}/cache",
        "data": scenario.data("transfer", "{seed}"),
        "base.validation": scenario.data("validation", "{seed}"),
        "evaluate": {**_evaluation(), "reference": f"{folder}/seed-{{seed}}/teacher-evaluation"},
    }
    spec = load_settings(AblationSpec, RECIPE, flags, [*tuning, *steps])
    return Ablation(spec, folder)


def _show(out: Path, rows: dict[str, list[ResultRow]], results: Sequence[AblationResult], quick: bool) -> int:
    from betakd_pipe.report import ReportScenario, write_report

    sentences = conclusions(rows)
    if quick:
        sentences = [f"A quick look with {QUICK_STEPS} steps a run: the students are not converged.", *sentences]
    page = write_report(
        out / "report.html",
        title="Beta-KD from a teacher cache: handwritten digits",
        summary=sentences,
        scenarios=[
            ReportScenario(scenario.name, scenario.description, rows[scenario.name], out / scenario.name)
            for scenario in SCENARIOS
        ],
    )
    for scenario, result in zip(SCENARIOS, results, strict=True):
        print(f"\n{scenario.name}: {scenario.description}")
        print_table(rows[scenario.name])
        for method, tuning in result.tuned.items():
            tried = ", ".join(f"{candidate.value:g}: {candidate.metric:.1f}" for candidate in tuning.candidates)
            print(f"{method}: beta {tuning.chosen:g} by validation accuracy on noisy labels ({tried})")
    print()
    for sentence in sentences:
        print(sentence)
    print(f"\nReport: {page}")
    failures = {run: reason for result in results for run, reason in result.failures.items()}
    for run, reason in failures.items():
        print(f"{run} failed: {reason}")
    return 1 if failures else 0

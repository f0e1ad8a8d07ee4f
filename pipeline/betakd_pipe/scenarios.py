"""What is wrong with labels and teachers in the experiments on digits: the demo shows two of these, benchmarks all."""

import os
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betakd_pipe.ablation.workers import worker_pool
from betakd_pipe.stage_runs import load_stages
from betakd_stages.progress import Progress, SilentProgress
from betakd_stages.settings import (
    CacheTeacherSettings,
    DistillSettings,
    EvaluateSettings,
    ObjectiveSettings,
    TrainingSettings,
    TrustSettings,
    WeightingSettings,
)

QUESTION_TYPES = ("which", "even", "greater", "prime")
TEACHER_STEPS = 200


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is wrong with the labels, and what with the teacher, as options of `digits`."""

    name: str
    description: str
    transfer_noise: str = ""
    teacher_noise: str = ""
    teacher_types: tuple[str, ...] = QUESTION_TYPES
    answers: str = "word"

    def data(self, split: str, seed: int | str) -> str:
        """The data specification of a split; labels are clean except in teacher, transfer and validation."""
        noise = {"teacher": self.teacher_noise, "transfer": self.transfer_noise, "validation": self.transfer_noise}
        types = self.teacher_types if split == "teacher" else QUESTION_TYPES
        return f"digits:{split}?types={'+'.join(types)}&seed={seed}{self._answers}{noise[split]}"

    @property
    def benchmark(self) -> str:
        """The specification of the test, whose labels are right."""
        return f"digits?types={'+'.join(QUESTION_TYPES)}{self._answers}"

    @property
    def _answers(self) -> str:
        return "" if self.answers == "word" else f"&answers={self.answers}"


D1 = Scenario(
    "D1",
    "A good teacher; 30 % of the transfer labels are wrong.",
    transfer_noise="&label_noise=0.3",
)
D2 = Scenario(
    "D2",
    "40 % of the transfer labels of two question types (which, even) are wrong, and the teacher is ignorant of the "
    "two others (greater, prime): half of its own labels there were flipped.",
    transfer_noise="&label_noise=0.4&noisy_types=which+even",
    teacher_noise="&label_noise=0.5&noisy_types=greater+prime",
)
D3 = Scenario(
    "D3",
    "20 % of the transfer labels are wrong, and the teacher never saw two question types (greater, prime), of which it "
    "is confidently wrong.",
    transfer_noise="&label_noise=0.2",
    teacher_types=("which", "even"),
)
D4 = Scenario(
    "D4",
    "20 % of the transfer labels are wrong, and the teacher learned 64 answers by heart that were drawn at random: it "
    "is sure, and knows nothing.",
    transfer_noise="&label_noise=0.2",
    teacher_noise="&random_labels=1&count=64",
)
D6 = Scenario(
    "D6",
    "20 % of the transfer labels are wrong, and the teacher takes 2 for 4, 4 for 7 and 7 for 2.",
    transfer_noise="&label_noise=0.2",
    teacher_noise="&confused=2+4+7",
)
CLEAN = Scenario("clean", "A good teacher, and no label is wrong.")

SCENARIOS = {scenario.name: scenario for scenario in (D1, D2, D3, D4, D6, CLEAN)}
DEMO_SCENARIOS = (D1, D2)


def prepare_all(
    scenarios: Sequence[Scenario], out: Path, seeds: Sequence[int], teacher_steps: int, progress: Progress
) -> None:
    """Train, evaluate and run the teacher of every scenario and seed, in worker processes."""
    tasks = [
        (scenario, out / scenario.name / f"seed-{seed}", seed, teacher_steps)
        for scenario in scenarios
        for seed in seeds
    ]
    progress.start("teachers and caches", total=len(tasks))
    try:
        with worker_pool(os.cpu_count() or 1) as pool:
            for future in as_completed([pool.submit(prepare, *task) for task in tasks]):
                future.result()
                progress.advance()
    finally:
        progress.finish()


def prepare(scenario: Scenario, folder: Path, seed: int, teacher_steps: int) -> None:
    """Fill `folder` with teacher/, teacher-evaluation/, cache/, the trust in it and the student to start from; what is
    there is kept."""
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
            steps=teacher_steps,
            batch_size=64,
            learning_rate=2e-3,
            train_vision_tower=True,
            log_every_steps=20,
            num_threads=1,
        ),
    )
    stage_runs.distill(teacher, folder / "teacher", progress=silent, stages=stages)
    evaluation = EvaluateSettings(model=str(folder / "teacher"), **evaluation_of(scenario))
    stage_runs.evaluate(evaluation, folder / "teacher-evaluation", progress=silent, stages=stages)
    caching = CacheTeacherSettings(
        teacher=str(folder / "teacher"),
        data=scenario.data("transfer", seed),
        batch_size=128,
        temperatures=(0.5, 1.0, 2.0, 5.0),  # so that every energy can be tried against these caches
    )
    stage_runs.cache_teacher(caching, folder / "cache", overwrite=False, progress=silent)
    if not (folder / "cache.trust.parquet").is_file():
        trust = TrustSettings(cache=str(folder / "cache"), data=scenario.data("transfer", seed))
        stage_runs.cache_trust(trust, progress=silent)


def evaluation_of(scenario: Scenario) -> dict[str, Any]:
    """The settings of the test of a teacher or student."""
    max_new_tokens = 4 if scenario.answers == "word" else 10
    return {"benchmark": scenario.benchmark, "batch_size": 512, "max_new_tokens": max_new_tokens}


def filled_in(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """What a spec of an ablation says of students, caches and data that `prepare` has put into `folder`/seed-N."""
    return {
        "student": f"{folder}/seed-{{seed}}/student",
        "cache": f"{folder}/seed-{{seed}}/cache",
        "data": scenario.data("transfer", "{seed}"),
        "base.validation": scenario.data("validation", "{seed}"),
        "evaluate": {**evaluation_of(scenario), "reference": f"{folder}/seed-{{seed}}/teacher-evaluation"},
    }

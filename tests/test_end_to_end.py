"""Both stages on real digits: what the demo claims, on one seed and with room to spare."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from betakd_stages.caching.run import cache_teacher
from betakd_stages.distillation.run import distill
from betakd_stages.evaluation.run import evaluate
from betakd_stages.models.tiny import STUDENT_SIZE, TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings, EvaluateSettings

QUESTION_TYPES = ("which", "even", "greater", "prime")
TYPES = f"types={'+'.join(QUESTION_TYPES)}"
NOISY = f"digits:transfer?{TYPES}&label_noise=0.3"
TRAINING = {"batch_size": 64, "train_vision_tower": True, "log_every_steps": 50, "num_threads": 1}
LABELS_ONLY: dict[str, Any] = {"objective": {"energies": []}, "weighting": {"name": "fixed"}}
FIXED: dict[str, Any] = {"objective": {"energies": ["fkl"]}, "weighting": {"name": "fixed"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student to start from and the cache of a teacher that is good, and gone."""
    folder = tmp_path_factory.mktemp("digits")
    save_tiny_model(folder / "untrained", TEACHER_SIZE, 0, QUESTION_TYPES)
    save_tiny_model(folder / "student", STUDENT_SIZE, 0, QUESTION_TYPES)
    run(folder, "teacher", student="untrained", data=f"digits:teacher?{TYPES}", steps=300, rate=2e-3, **LABELS_ONLY)
    assert accuracy(folder / "teacher") > 85
    settings = CacheTeacherSettings(teacher=str(folder / "teacher"), data=NOISY, batch_size=128)
    cache_teacher(settings, folder / "cache", progress=SilentProgress())
    shutil.rmtree(folder / "teacher")
    shutil.rmtree(folder / "untrained")
    return folder


def run(folder: Path, name: str, *, student: str, data: str, steps: int, rate: float, **settings: Any) -> None:
    training = {**TRAINING, "steps": steps, "learning_rate": rate}
    common = {"student": str(folder / student), "data": data, "training": training}
    distill(DistillSettings.model_validate({**common, **settings}), folder / name, progress=SilentProgress())


def accuracy(run: Path) -> float:
    settings = EvaluateSettings(model=str(run), benchmark=(f"digits?{TYPES}",), batch_size=512, max_new_tokens=4)
    return float(evaluate(settings, run / "evaluation", progress=SilentProgress())["accuracy"])


def student_accuracy(folder: Path, name: str, **settings: Any) -> float:
    cache = str(folder / "cache")
    run(folder, name, student="student", data=NOISY, steps=350, rate=3e-3, cache=cache, **settings)
    return accuracy(folder / name)


def test_a_good_teachers_cache_beats_noisy_labels_and_shuffled_records_do_not(folder: Path) -> None:
    labels = student_accuracy(folder, "ce", **LABELS_ONLY)
    distilled = student_accuracy(folder, "fkl", **FIXED)
    shuffled = student_accuracy(folder, "shuffled", control={"shuffle_records": True}, **FIXED)
    # Over many seeds the smallest gain was 15 points; other seeds of the same setting spread by 3.
    assert distilled > labels + 5
    assert distilled > shuffled + 10


def test_task_level_weights_are_learned_finite_and_do_not_harm(folder: Path) -> None:
    learned = student_accuracy(folder, "task", objective={"energies": ["fkl"]}, weighting={"name": "task"})
    assert learned > 70

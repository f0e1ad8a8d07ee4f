"""Teacher assistants (TAKD): a run is a teacher, from one size to the next."""

from pathlib import Path

import pytest

from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.distillation.run import distill
from betakd_stages.errors import ModelError
from betakd_stages.evaluation.run import evaluate
from betakd_stages.models.loading import load_model, weights_sha256
from betakd_stages.models.tiny import STUDENT_SIZE, TEACHER_SIZE, TinySize, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings, EvaluateSettings

DATA = "digits:transfer?types=even&count=64&seed=3&pixel_noise=0"
ASSISTANT_SIZE = TinySize(width=48, vision_layers=1, language_layers=2)
TRAINING = {"steps": 30, "batch_size": 32, "learning_rate": 3e-3, "train_vision_tower": True, "probe_samples": 0}


def learned(student: Path, out: Path, cache: Path | None = None) -> Path:
    """The run of a model that learns from a cache, or from the labels."""
    energies = {"energies": ["fkl"], "cross_entropy_weight": 0.0} if cache else {"energies": []}
    settings = {"student": str(student), "cache": None if cache is None else str(cache), "data": DATA}
    fixed = {"name": "fixed", "options": {"beta": 1.0}}
    asked = DistillSettings.model_validate(
        {**settings, "objective": energies, "weighting": fixed, "training": TRAINING}
    )
    distill(asked, out, progress=SilentProgress())
    return out


def cached(teacher: Path, out: Path) -> Path:
    cache_teacher(CacheTeacherSettings(teacher=str(teacher), data=DATA, batch_size=64), out, progress=SilentProgress())
    return out


def test_a_student_learns_from_an_assistant_that_learned_from_a_teacher(tmp_path: Path) -> None:
    """Three sizes; each run's folder is the next one's teacher, and the last knows what only the first was told."""
    sizes = {"teacher": TEACHER_SIZE, "assistant": ASSISTANT_SIZE, "student": STUDENT_SIZE}
    start = {name: save_tiny_model(tmp_path / name, size, 1, ("even",)) for name, size in sizes.items()}

    teacher = learned(start["teacher"], tmp_path / "teacher-run")
    assistant = learned(start["assistant"], tmp_path / "assistant-run", cached(teacher, tmp_path / "of-teacher"))
    student = learned(start["student"], tmp_path / "student-run", cached(assistant, tmp_path / "of-assistant"))

    held = open_cache(tmp_path / "of-assistant").manifest.identity["teacher"]
    assert held["weights_sha256"] == weights_sha256(assistant / "model")
    widths = [load_model(str(run)).model.config.text_config.hidden_size for run in (teacher, assistant, student)]
    assert widths == [64, 48, 32]
    loss = {
        name: evaluate(
            EvaluateSettings(model=str(folder), benchmark=(DATA,), max_new_tokens=2),
            tmp_path / f"{name}-scores",
            progress=SilentProgress(),
        )["accuracy"]
        for name, folder in (("untrained", start["student"]), ("trained", student))
    }
    assert loss["untrained"] < 20 < 45 < loss["trained"]


def test_a_run_that_is_not_finished_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("student: s\n", encoding="utf-8")
    with pytest.raises(ModelError, match="run"):
        cached(tmp_path / "run", tmp_path / "cache")

"""What several test folders share: tiny models and a cache, made once per test process."""

import pytest
import torch
from tests.world import DATA, World

from betakd_stages.caching import cache_teacher
from betakd_stages.models.tiny import STUDENT_SIZE, TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    teacher = save_tiny_model(folder / "teacher", TEACHER_SIZE, seed=1)
    student = save_tiny_model(folder / "student", STUDENT_SIZE, seed=2)
    settings = CacheTeacherSettings(
        teacher=str(teacher),
        data=DATA,
        shard_samples=20,
        batch_size=7,
        temperatures=(0.5, 1.0, 2.0, 5.0),  # every energy's range
    )
    cache_teacher(settings, folder / "cache", progress=SilentProgress())
    return World(teacher, student, folder / "cache", DATA)

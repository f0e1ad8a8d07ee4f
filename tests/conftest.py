"""What several test folders share: tiny models and a cache, made once per test process."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from tests.launcher import Launcher, running_launcher
from tests.world import DATA, World

from betakd_stages.caching.run import cache_teacher
from betakd_stages.models.tiny import STUDENT_SIZE, TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


def pytest_configure() -> None:
    """What holds in the tests and in the commands they start."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the last bit of a sum depends on how many threads there are
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
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


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with running_launcher() as started:
        yield started

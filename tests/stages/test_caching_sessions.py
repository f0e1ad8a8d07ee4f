"""The teacher's seconds, noted beside a cache."""

import json
from pathlib import Path

from tests.world import World

from betakd_cache.verification import verify
from betakd_pipe.report.cost import teacher_seconds
from betakd_stages.caching.run import cache_teacher
from betakd_stages.caching.sessions import noted_session, sessions_path
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


def test_every_session_of_a_cache_is_noted_beside_it(world: World, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    settings = CacheTeacherSettings(teacher=str(world.teacher), data=world.data, batch_size=24)
    for part in ((0, 2), (1, 2), (1, 2)):  # the last has nothing left to do
        cache_teacher(settings, out, part=part, progress=SilentProgress())
    lines = [json.loads(line) for line in sessions_path(out).read_text().splitlines()]
    assert [line["part"] for line in lines] == ["0/2", "1/2"]
    assert all(line["seconds"] > 0 for line in lines)
    assert teacher_seconds(out) == sum(line["seconds"] for line in lines)
    assert not verify(out).problems


def test_sessions_of_a_cache_that_was_removed_are_forgotten(tmp_path: Path) -> None:
    for is_first in (True, False, True):
        with noted_session(tmp_path / "cache", (0, 1), is_first=is_first):
            pass
    assert len(sessions_path(tmp_path / "cache").read_text().splitlines()) == 1


def test_nothing_is_noted_for_an_object_store(tmp_path: Path) -> None:
    with noted_session("s3://bucket/cache", (0, 1), is_first=True):
        pass
    assert teacher_seconds(tmp_path / "cache") is None

"""kill -9 of `betakd-pipe cache-teacher` at random moments: resuming gives an uninterrupted run's values."""

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.cache.records import ARRAY_FIELDS, assert_equal_records
from tests.launcher import Launcher, kill_at_work
from tests.world import World

from betakd_cache import TeacherRecord, open_cache, verify
from betakd_pipe.cli import main

DATA = "digits:transfer?count=120"


@dataclass(slots=True)
class Campaign:
    """What came of a number of kills; `hits` found a run at work, the others one that had ended."""

    kills: int = 0
    hits: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = (f"{name} {len(getattr(self, name))}" for name in ("lost", "twice", "wrong"))
        return f"kills {self.kills}, at work {self.hits}, {', '.join(parts)}"


def arguments(world: World, out: Path) -> list[str]:
    """One sample at a time, so that values do not depend on where a run was cut, in many small shards."""
    return [
        *("cache-teacher", "--teacher", str(world.teacher), "--data", DATA, "--out", str(out)),
        *("--features", "vision:tokens,prompt", "--vision-focus", "2"),
        *("--set", "batch_size=1", "--set", "shard_samples=4"),
    ]


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of an uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "cache"
    assert main(arguments(world, out)) == 0
    return out


def committed(path: Path) -> list[str]:
    """The ids that the cache holds at this moment; none if it has not come to be."""
    if not (path / "manifest.json").exists():
        return []
    return open_cache(path, allow_incomplete=True).sample_ids.to_pylist()


def differs(found: TeacherRecord, expected: TeacherRecord) -> bool:
    """Whether two records differ in a single bit."""
    try:
        assert_equal_records(found, expected)
    except AssertionError:
        return True
    return False


def run_campaign(
    campaign: Campaign, world: World, launcher: Launcher, reference: Path, out: Path, delays_s: list[float]
) -> None:
    """Kill runs that write one cache, finish it, and note every sample that is not as the reference has it."""
    held: list[str] = []
    for delay_s in delays_s:
        campaign.kills += 1
        campaign.hits += kill_at_work(launcher, arguments(world, out), out / "shards.jsonl", delay_s)
        after = committed(out)
        campaign.lost += [f"{out.name}: {sample_id}" for sample_id in held if sample_id not in after]
        held = after
    assert main(arguments(world, out)) == 0
    found, expected = open_cache(out), open_cache(reference)
    ids = found.sample_ids.to_pylist()
    wanted = expected.sample_ids.to_pylist()
    campaign.lost += [f"{out.name}: {sample_id}" for sample_id in wanted if sample_id not in ids]
    campaign.twice += [f"{out.name}: {sample_id}" for sample_id in set(ids) if ids.count(sample_id) > 1]
    places = {sample_id: place for place, sample_id in enumerate(wanted)}
    campaign.wrong += [f"{out.name}: {sample_id}" for sample_id in set(ids) - set(wanted)]
    campaign.wrong += [
        f"{out.name}: {sample_id}"
        for index, sample_id in enumerate(ids)
        if sample_id in places and differs(found.record(index), expected.record(places[sample_id]))
    ]
    campaign.wrong += [f"{out.name}: {problem}" for problem in verify(out).problems]


def check(campaign: Campaign, least_hits: int) -> None:
    """Print the report line; fails where a sample is lost, twice there or wrong, or too few kills hit."""
    print(f"\n{campaign}")
    assert (campaign.lost, campaign.twice, campaign.wrong) == ([], [], [])
    assert campaign.hits >= least_hits


def test_five_random_kills_of_the_command_lose_nothing(
    world: World, launcher: Launcher, reference: Path, tmp_path: Path
) -> None:
    generator = random.Random(5)
    campaign = Campaign()
    delays_s = [generator.uniform(0, 0.2) for _ in range(5)]
    run_campaign(campaign, world, launcher, reference, tmp_path / "cache", delays_s)
    check(campaign, least_hits=3)


@pytest.mark.long
def test_a_hundred_random_kills_of_the_command_lose_nothing(
    world: World, launcher: Launcher, reference: Path, tmp_path: Path
) -> None:
    generator = random.Random(6)
    campaign = Campaign()
    for number in range(20):
        delays_s = [generator.uniform(0, 0.2) for _ in range(5)]
        run_campaign(campaign, world, launcher, reference, tmp_path / f"cache {number}", delays_s)
    check(campaign, least_hits=60)


def test_a_record_that_differs_in_any_field_is_noticed(reference: Path) -> None:
    record = open_cache(reference).record(0)
    assert not differs(record, open_cache(reference).record(0))
    for name in ARRAY_FIELDS:
        values = getattr(record, name).copy()
        values.flat[0] = 0 if np.isinf(values.flat[0]) else values.flat[0] + 1
        assert differs(record, dataclasses.replace(record, **{name: values})), name

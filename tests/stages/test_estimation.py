"""`cache estimate`: what it foretells is what caching then takes."""

import json
import time
from pathlib import Path

import pytest
from tests.world import World

from betakd_pipe.cli import main
from betakd_stages.caching.estimation import estimate
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import SOURCES, load_samples
from betakd_stages.data.sample import LazySamples, Sample, SampleSet, Turn
from betakd_stages.data.specification import DataSpecification
from betakd_stages.encoding import EncodedSample
from betakd_stages.errors import ConfigError
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.hf import HuggingFaceTeacher


def test_the_bytes_foretold_from_a_few_samples_are_those_of_the_whole_cache(world: World, tmp_path: Path) -> None:
    settings = CacheTeacherSettings(teacher=str(world.teacher), data="digits:transfer?count=400", shard_samples=100)
    found = estimate(settings, num_scored=100, progress=SilentProgress())
    made = cache_teacher(settings, tmp_path / "cache", progress=SilentProgress())
    assert (found.num_scored, found.num_samples) == (100, 400)
    assert found.total_bytes == pytest.approx(made.size_bytes, rel=0.02)
    assert found.tokens_per_sample == pytest.approx(made.num_tokens / 400, rel=0.05)
    parts = {name: size for name, size in found.bytes_per_sample.items() if name != "all"}
    assert sum(parts.values()) == pytest.approx(found.bytes_per_sample["all"])
    assert 0 < found.hours < 0.1
    assert found.peak_memory_bytes > 50e6


def test_each_group_has_the_bytes_that_the_format_says(world: World) -> None:
    """64-wide features in float16 twice, presence, two temperatures; four bytes of checksum per array."""
    settings = CacheTeacherSettings(teacher=str(world.teacher), data=world.data, top_k=5, top_p=1, temperatures=(1, 2))
    found = estimate(settings, num_scored=48, progress=SilentProgress())
    tokens = found.tokens_per_sample
    crc = 4 / 48
    assert found.bytes_per_sample["features"] == pytest.approx(2 * 64 * 2 + 2 + 4 * crc)
    assert found.bytes_per_sample["tail"] == pytest.approx(tokens * (2 * 4 + 2 * 2) + 2 * crc)
    assert found.bytes_per_sample["moments"] == pytest.approx(tokens * 10 + 3 * crc)
    assert found.bytes_per_token["entries"] == pytest.approx(5 * 3 + 3 + 1 + (8 * 49 / 48 + 5 * crc) / tokens)


@pytest.mark.parametrize(("top_k", "dominate"), [(2, True), (34, False)])
def test_the_command_says_where_features_dominate(
    world: World, capsys: pytest.CaptureFixture[str], top_k: int, dominate: bool
) -> None:
    flags = ["--teacher", str(world.teacher), "--data", "digits:transfer", "--samples", "16", "--top-k", str(top_k)]
    flags += ["--top-p", "1", "--temperatures", "0.5,1,1.5,2,3,4"]
    assert main(["cache", "estimate", *flags, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["features_dominate"] == dominate
    assert main(["cache", "estimate", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"num_samples: 2500", "num_scored: 16", "peak_device_memory_bytes: None"} <= set(lines)
    assert lines[-1].startswith("features take ") == dominate


def test_hours_and_memory_are_those_of_a_teacher_of_known_cost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 ms a sample, of 2,500; two windows of encoded samples are held, so that larger ones need that much more."""
    score = HuggingFaceTeacher.score

    def slow(self: HuggingFaceTeacher, encoded: list[EncodedSample]) -> object:
        time.sleep(0.02 * len(encoded))
        return score(self, encoded)

    monkeypatch.setattr(HuggingFaceTeacher, "score", slow)
    small = CacheTeacherSettings(teacher=str(world.teacher), data="digits:transfer", batch_size=1, bucket_window=1)
    large = small.model_copy(update={"bucket_window": 10**6})
    found, held = (estimate(some, num_scored=16, progress=SilentProgress()) for some in (small, large))
    assert found.num_samples == 2500
    assert 0.02 < found.seconds_per_sample < 0.2  # a busy machine adds to the 20 ms, nothing takes from them
    assert found.hours == pytest.approx(found.seconds_per_sample * 2500 / 3600)
    encoder = load_encoder(world.teacher)
    one_bytes = encoder.encode(load_samples("digits:transfer")[0]).num_bytes
    assert held.peak_memory_bytes - found.peak_memory_bytes == pytest.approx(2 * 10**6 * one_bytes, rel=0.01)


def test_no_sample_at_all_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="0 samples to score: expected at least 1"):
        estimate(
            CacheTeacherSettings(teacher=str(world.teacher), data=world.data), num_scored=0, progress=SilentProgress()
        )


def test_2_2_million_samples_on_64_gpus_are_foretold_in_parts_hours_and_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def simulated(specification: DataSpecification) -> SampleSet:
        def sample(number: int) -> Sample:
            return Sample(str(number), None, (Turn("is five even ?", "no" if number % 2 else "yes"),))

        samples = SampleSet(specification.canonical(), LazySamples(sample, range(2_200_000)))
        samples.__dict__["fingerprint"] = "simulated"  # it would read every sample
        return samples

    monkeypatch.setitem(SOURCES, "simulated", simulated)
    flags = [
        "--teacher",
        str(world.teacher),
        "--data",
        "simulated:train",
        "--out",
        str(tmp_path / "cache"),
        "--dry-run",
    ]
    assert main(["cache-teacher", *flags, "--workers", "64"]) == 0
    fields = dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert (fields["num_samples"], fields["num_parts"], fields["samples_per_part"]) == ("2200000", "64", "34375")
    assert float(fields["bytes_per_part"]) == pytest.approx(float(fields["total_bytes"]) / 64, rel=1e-3)
    scoring_h = float(fields["seconds_per_sample"]) * 34375 / 3600
    assert scoring_h < float(fields["hours_per_part"]) < scoring_h + 120 / 3600
    assert float(fields["hours"]) == pytest.approx(64 * scoring_h, rel=2e-3)
    assert not (tmp_path / "cache").exists()

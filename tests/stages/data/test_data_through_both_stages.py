"""ScienceQA's files, a mixture and lazy samples through the teacher's cache and into a student."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.distillation.run import distill
from betakd_stages.errors import DataError, MismatchError
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

NUM_PROBLEMS = 12
BROKEN = "6"


@pytest.fixture
def scienceqa(tmp_path: Path) -> str:
    """Problems in the authors' files; every second has an image, of the tiny models' size, and one is broken."""
    problems = {}
    for number in range(NUM_PROBLEMS):
        problems[str(number)] = {
            "question": "is this digit even ?",
            "choices": ["yes", "no"],
            "answer": number % 2,
            "hint": "five is prime" if number % 3 == 0 else "",
            "image": "image.png" if number % 2 == 0 else None,
            "subject": "language science",
            "split": "train",
        }
        if number % 2 == 0:
            place = tmp_path / "images" / "train" / str(number)
            place.mkdir(parents=True)
            Image.effect_noise((16, 16), 60 + number).save(place / "image.png")
    (tmp_path / "images" / "train" / BROKEN / "image.png").write_text("not an image")
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": list(problems), "test": ["1"]}))
    return f"scienceqa:{tmp_path}?split=train"


def cached(world: World, data: str, out: Path, max_rejected: int = 0) -> Path:
    chosen = CacheTeacherSettings(teacher=str(world.teacher), data=data, batch_size=5, max_rejected=max_rejected)
    assert cache_teacher(chosen, out, progress=SilentProgress()).is_complete
    return out


def distilled(world: World, data: str, cache: Path, out: Path, **settings: str) -> dict[str, float]:
    training = {"steps": 4, "batch_size": 6, "learning_rate": 1e-3, "log_every_steps": 2}
    values = {"student": str(world.student), "cache": str(cache), "data": data, "training": training, **settings}
    return distill(DistillSettings.model_validate(values), out, progress=SilentProgress()).final_metrics


def test_scienceqa_with_text_only_samples_is_cached_and_distilled_and_a_broken_image_recorded(
    world: World, scienceqa: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"sample {BROKEN}: image .*{BROKEN}/image.png is none of JPEG.*max_rejected=N"):
        cached(world, scienceqa, tmp_path / "cache")
    cache = cached(world, scienceqa, tmp_path / "cache", max_rejected=1)
    held = open_cache(cache)
    assert list(held.rejected) == [BROKEN]
    assert held.sample_ids.to_pylist() == [str(number) for number in range(NUM_PROBLEMS) if str(number) != BROKEN]
    images = held.rows(["image_sha256"]).column("image_sha256").to_pylist()
    assert [image is not None for image in images] == [
        int(sample_id) % 2 == 0 for sample_id in held.sample_ids.to_pylist()
    ]
    with pytest.raises(MismatchError, match=f"sample '{BROKEN}': the teacher's run rejected it \\(image .* is none of"):
        distilled(world, scienceqa, cache, tmp_path / "run")
    metrics = distilled(world, scienceqa, cache, tmp_path / "run", on_mismatch="drop")
    assert metrics["num_dropped"] == 1
    assert math.isfinite(metrics["objective"])


def test_a_mixture_is_cached_and_distilled(world: World, scienceqa: str, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(
        f"sources: [{{name: sqa, data: '{scienceqa}', count: 6}}, {{name: digits, data: '{world.data}', count: 10}}]"
    )
    data = f"mixture:{tmp_path}/mix.yaml"
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "train" / BROKEN / "image.png")
    cache = cached(world, data, tmp_path / "cache")
    assert open_cache(cache).sample_ids.to_pylist() == [sample.sample_id for sample in load_samples(data)]
    metrics = distilled(world, data, cache, tmp_path / "run")
    assert metrics["num_dropped"] == 0
    assert math.isfinite(metrics["objective"])

"""`betakd-pipe cache-vision`: one row per distinct image, whatever comes in between."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cache.records import assert_equal_records
from tests.launcher import Launcher, kill_at_work
from tests.stages.photos import write_photos
from tests.world import World

from betakd_cache import open_cache, verify
from betakd_pipe.cli import main
from betakd_stages.caching.vision_estimation import estimate_vision
from betakd_stages.data import load_samples
from betakd_stages.models.loading import load_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheVisionSettings


def arguments(world: World, out: Path, *more: str) -> list[str]:
    """One image at a time: the number in a batch would change the last bits of the numbers."""
    batches = ["--set", "batch_size=1", "--set", "shard_images=2"]
    return ["cache-vision", "--student", str(world.student), "--data", world.data, "--out", str(out), *batches, *more]


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line that a command that is refused prints."""
    capsys.readouterr()
    assert main(list(command)) == 2
    lines = capsys.readouterr().err.splitlines()
    return next(line for line in lines if line.startswith("betakd-pipe: "))


def assert_equal_caches(left: Path, right: Path) -> None:
    """Nothing; fails unless both hold the same rows, bit for bit."""
    found, expected = open_cache(left), open_cache(right)
    ids = expected.sample_ids.to_pylist()
    assert sorted(found.sample_ids.to_pylist()) == sorted(ids)
    for index, place in enumerate(found.index_of(ids)):
        assert_equal_records(found.record(int(place)), expected.record(index))
    assert verify(left).ok, verify(left).problems


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of one uninterrupted process."""
    out = tmp_path_factory.mktemp("whole") / "vision"
    assert main(arguments(world, out)) == 0
    return out


@pytest.mark.parametrize("exact", [False, True])
def test_a_row_is_the_selected_layer_of_the_tower_without_the_class_token(
    world: World, whole: Path, tmp_path: Path, exact: bool
) -> None:
    out = whole
    if exact:
        out = tmp_path / "vision"
        assert main(arguments(world, out, "--exact", "--limit", "5")) == 0
    cache, student = open_cache(out), load_model(world.student)
    for sample in load_samples(world.data)[:5]:
        encoded = student.encoder.encode(sample)
        with torch.no_grad():
            tower = student.model.model.vision_tower
            states = tower(encoded.image_inputs["pixel_values"], output_hidden_states=True).hidden_states
        expected = states[student.model.config.vision_feature_layer][0, 1:].double().numpy()
        found = cache.record(int(cache.index_of([str(encoded.image_sha256)])[0])).features["tower"]
        tolerance = 1e-6 if exact else 2.0**-11  # half a unit in the last of float16's 11 bits
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-6)


def test_samples_with_the_same_image_share_a_row_whatever_its_file_is_called(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, level in (("a", 60), ("b", 90)):
        Image.new("RGB", (16, 16), (level, level, level)).save(folder / f"{name}.png")
    shutil.copy(folder / "a.png", folder / "copy.png")
    rows = [f'{{"image": "{name}.png", "question": "is this digit even ?", "answer": "yes"}}' for name in "aab"]
    rows.append('{"image": "copy.png", "question": "is this digit prime ?", "answer": "no"}')
    rows.append('{"image": null, "question": "is this digit prime ?", "answer": "no"}')
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    data = f"table:{tmp_path / 'rows.jsonl'}?images={folder}"
    assert main(["cache-vision", "--student", str(world.student), "--data", data, "--out", str(tmp_path / "v")]) == 0
    cache = open_cache(tmp_path / "v")
    images = [sample.image for sample in load_samples(data)]
    assert cache.sample_ids.to_pylist() == [image.sha256() for image in (images[0], images[2]) if image]


def test_killed_runs_go_on_and_end_as_an_uninterrupted_one(
    world: World, whole: Path, launcher: Launcher, tmp_path: Path
) -> None:
    out, generator = tmp_path / "vision", random.Random(3)
    delays_s = [generator.uniform(0, 0.03) for _ in range(2)]
    hits = [kill_at_work(launcher, arguments(world, out), out / "shards.jsonl", delay_s) for delay_s in delays_s]
    assert any(hits)
    assert main(arguments(world, out)) == 0
    assert_equal_caches(out, whole)


def test_two_parts_are_the_whole_and_the_last_completes_it(
    world: World, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vision"
    assert main(arguments(world, out, "--part", "1/2")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: part 1/2 is complete, other parts of the cache are not"
    assert main(arguments(world, out, "--part", "0/2")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: part 0/2 is complete, and so is the cache"
    assert_equal_caches(out, whole)


def test_a_second_call_adds_the_images_of_other_data(
    world: World, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vision"
    assert main(arguments(world, out, "--limit", "20")) == 0
    assert f"{out}: 20 images (20 new), " in capsys.readouterr().out
    assert main(arguments(world, out)) == 0
    assert f"{out}: 48 images (28 new), " in capsys.readouterr().out
    assert_equal_caches(out, whole)
    assert main(arguments(world, out)) == 0
    assert f"{out}: 48 images (all there before), " in capsys.readouterr().out


def test_bf16_computes_as_training_in_bf16_does(world: World, tmp_path: Path) -> None:
    out = tmp_path / "vision"
    assert main(arguments(world, out, "--exact", "--limit", "3", "--set", "precision=bf16")) == 0
    student, (sample, *_) = load_model(world.student), load_samples(world.data)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pixels = student.encoder.encode(sample).image_inputs["pixel_values"]
        states = student.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    expected = states[student.model.config.vision_feature_layer][0, 1:].float().numpy()
    np.testing.assert_array_equal(open_cache(out).record(0).features["tower"], expected)


def test_an_image_that_cannot_be_read_stops_the_run_or_is_passed_over(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photos(tmp_path)
    for path in (tmp_path / "photos").iterdir():
        Image.open(path).resize((16, 16)).save(path)
    (tmp_path / "photos" / "4.png").write_text("not an image")
    (tmp_path / "photos" / "7.png").unlink()
    command = ["cache-vision", "--student", str(world.student), "--data", data, "--out", str(tmp_path / "v")]
    assert refusal(capsys, *command).startswith("betakd-pipe: sample 7: image ")
    assert not (tmp_path / "v").exists()
    again = "Mend it and run the same command again, or let --set max_skipped=N pass over up to N such samples (now 1)"
    message = refusal(capsys, *command, "--set", "max_skipped=1")
    assert message.startswith("betakd-pipe: warning: passed over sample 7: image ")
    capsys.readouterr()
    assert main([*command, "--set", "max_skipped=1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(again)
    assert main([*command, "--set", "max_skipped=2"]) == 0
    assert "6 images (6 new, 2 samples passed over), " in capsys.readouterr().out


def test_what_cannot_be_cached_is_refused_in_one_line(
    world: World, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"question": "is this digit even ?", "answer": "yes"}\n')
    out = str(tmp_path / "v")
    message = refusal(capsys, "cache-vision", "--student", str(world.student), "--data", f"table:{text}", "--out", out)
    assert message.endswith("has an image that can be read: there is nothing to cache, check the data")
    assert not Path(out).exists()
    assert "s3://bucket/v is an URL: rows of a vision cache are read at random" in refusal(
        capsys, *arguments(world, tmp_path, "--out", "s3://bucket/v")
    )
    assert refusal(capsys, *arguments(world, whole, "--exact")).endswith(
        "was written with token_rule.exact = false, this run has true; use the cache's setting, write to another path, "
        "or overwrite the cache"
    )
    assert 'was written with tower.precision = "fp32", this run has "bf16"' in refusal(
        capsys, *arguments(world, whole, "--set", "precision=bf16")
    )
    assert "was written with tower." in refusal(capsys, *arguments(world, whole, "--student", str(world.teacher)))


def test_the_estimate_is_what_a_run_takes_and_writes_nothing(
    world: World, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v"
    settings = CacheVisionSettings(student=str(world.student), data=world.data, batch_size=1, shard_images=2)
    found = estimate_vision(settings, str(out), progress=SilentProgress())
    assert (found.num_samples, found.num_images, found.num_timed) == (48, 48, 32)
    assert found.total_bytes == pytest.approx(open_cache(whole).manifest.counts.size_bytes, rel=0.01)
    assert found.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert found.hours == pytest.approx(48 * found.seconds_per_image / 3600)
    assert main([*arguments(world, out), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 48 images of 48 samples, by 32 of them\n")
    assert not out.exists()


def test_info_says_what_a_vision_cache_is_and_nothing_of_tokens(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "info", str(whole)]) == 0
    printed = capsys.readouterr().out
    for line in ("identity.tower.model_type: clip_vision_model", "feature_sizes.tower: 32", "counts.num_samples: 48"):
        assert line in printed.splitlines()
    assert "bytes_per_image: " in printed
    assert "token" not in printed.replace("tokens", "")
    assert "entropy" not in printed
    png = str(tmp_path / "x.png")
    assert "has no histograms: leave --png out" in refusal(capsys, "cache", "info", str(whole), "--png", png)
    assert main(["cache", "verify", str(whole)]) == 0

"""The check for a blind teacher: warned of, or refused, where a grey image instead of the real one changes nothing."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.stages.test_caching import as_files, settings
from tests.world import World
from transformers import LlavaForConditionalGeneration

from betakd_pipe.cli import main
from betakd_stages.caching.grounding import measure_grounding
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.errors import ModelError
from betakd_stages.progress import SilentProgress
from betakd_stages.teachers.opening import open_hf_teacher


def blind_teacher(world: World, folder: Path) -> Path:
    """The world's teacher with a projector that gives the same for every image."""
    blind = folder / "blind"
    shutil.copytree(world.teacher, blind)
    model = LlavaForConditionalGeneration.from_pretrained(blind)
    model.model.multi_modal_projector.linear_2.weight.data.zero_()
    model.save_pretrained(blind)
    return blind


def text_only(world: World, folder: Path) -> str:
    """Samples as the world's, without images."""
    as_files(world, folder, 6)
    entries = json.loads((folder / "data.json").read_text())
    for entry in entries:
        del entry["image"]
    (folder / "data.json").write_text(json.dumps(entries))
    return f"llava:{folder}/data.json?images={folder}/images"


def test_the_divergence_is_that_of_the_full_distributions_with_a_grey_image(world: World, tmp_path: Path) -> None:
    """KL(with || grey) over the answer tokens in float64, from the whole model run on files, one of them made grey."""
    data = as_files(world, tmp_path / "data", 1)
    (sample,) = load_samples(data)
    teacher = open_hf_teacher(settings(world))
    loaded = teacher.loaded
    found = measure_grounding(teacher, [sample])
    assert sample.image is not None
    path = tmp_path / "data" / "images" / "0.png"
    image = sample.image.load().pixels
    log_probs = []
    for pixels in (image, image.point(lambda value: 128)):
        pixels.save(path)
        encoded = loaded.encoder.encode(sample)
        output = loaded.model(input_ids=encoded.input_ids[None], **encoded.image_inputs)
        rows = np.flatnonzero(encoded.labels.numpy()[1:] != -100)
        logits = output.logits[0, rows].detach().double().numpy()
        log_probs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    seen, grey = log_probs
    assert found is not None
    assert (found.num_samples, found.num_tokens) == (1, len(seen))
    assert found.mean_kl == pytest.approx((np.exp(seen) * (seen - grey)).sum(axis=1).mean(), rel=1e-4)
    assert found.share_changed == (seen.argmax(axis=1) != grey.argmax(axis=1)).mean()
    assert found.is_grounded


def test_a_teacher_that_looks_at_images_gives_no_warning(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_teacher(settings(world, require_grounding=True), tmp_path / "cache", progress=SilentProgress())
    assert "hardly looks" not in caplog.text


def test_a_blind_teacher_is_warned_of_and_cached_all_the_same(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = settings(world, teacher=str(blind_teacher(world, tmp_path)), limit=10)
    with caplog.at_level(logging.WARNING):
        assert cache_teacher(some, tmp_path / "cache", progress=SilentProgress()).num_new == 10
    (message,) = [text for text in caplog.messages if "hardly looks" in text]
    assert "over 17 answer tokens of 8 samples move by 0 nats (expected 0.01 or more)" in message
    assert "0% of its first choices change. Check that its checkpoint holds the projector" in message


def test_a_blind_teacher_stops_the_command_that_requires_grounding_before_anything_is_cached(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher", str(blind_teacher(world, tmp_path)), "--data", world.data, "--out", str(tmp_path / "cache")]
    capsys.readouterr()
    assert main(["cache-teacher", *flags, "--require-grounding"]) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("betakd-pipe: the teacher hardly looks at images: with a grey image instead, its")
    assert not (tmp_path / "cache").exists()


def test_without_an_image_nothing_is_measured_and_required_grounding_says_so(world: World, tmp_path: Path) -> None:
    data = text_only(world, tmp_path / "data")
    cache_teacher(settings(world, data=data), tmp_path / "cache", progress=SilentProgress())
    some = settings(world, data=data, require_grounding=True)
    with pytest.raises(ModelError) as caught:
        cache_teacher(some, tmp_path / "other", progress=SilentProgress())
    assert str(caught.value) == (
        "whether the teacher looks at images cannot be told: of 6 samples looked at none has a readable image and "
        "finite logits, leave require_grounding out"
    )


def test_broken_images_are_passed_over_by_the_check_and_named_by_the_run(world: World, tmp_path: Path) -> None:
    data = as_files(world, tmp_path / "data", 6)
    (tmp_path / "data" / "images" / "2.png").unlink()
    some = settings(world, data=data, require_grounding=True, max_rejected=1)
    summary = cache_teacher(some, tmp_path / "cache", progress=SilentProgress())
    assert (summary.num_samples, summary.num_rejected) == (5, 1)

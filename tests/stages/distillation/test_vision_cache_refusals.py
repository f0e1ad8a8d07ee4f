"""A vision cache that does not belong to what the student sees is refused in one line, before anything is written."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.stages.models.world import folder_of
from tests.world import World

from betakd_pipe.cli import main
from betakd_stages.models.tiny import STUDENT_SIZE, save_tiny_model

NUM_IMAGES = 6


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run of `distill` is given; what is not of a student's cache is as in `World`."""

    student: str
    data: str
    photos: Path
    cache: str
    vision: str

    def refusal(self, capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> str:
        """What a run that is refused prints; later flags win over those of the inputs."""
        command = ["distill", "--student", self.student, "--data", self.data]
        command += [] if "--cache" in more else ["--cache", self.cache]  # several would be several teachers
        command += ["--vision-cache", self.vision, "--out", str(out), "--set", "training.steps=1", *more]
        capsys.readouterr()
        assert main(command) == 2
        assert not out.exists()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("betakd-pipe: ")]
        return line.removeprefix("betakd-pipe: ")


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Images in files, of the tiny models' size, and both caches of them."""
    folder = tmp_path_factory.mktemp("inputs")
    photos = folder / "photos"
    photos.mkdir()
    rows = []
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
        rows.append({"id": f"{number}", "image": f"{number}.png", "question": "is this digit even ?", "answer": "yes"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"table:{folder / 'rows.jsonl'}?images={photos}&id=id"
    cache, vision = str(folder / "cache"), str(folder / "vision")
    assert main(["cache-teacher", "--teacher", str(world.teacher), "--data", data, "--out", cache]) == 0
    assert main(["cache-vision", "--student", str(world.student), "--data", data, "--out", vision]) == 0
    return Inputs(str(world.student), data, photos, cache, vision)


def test_a_tower_that_trains(made: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.refusal(capsys, tmp_path / "run", "--set", "training.train_vision_tower=true").endswith(
        "vision_cache is given and training.train_vision_tower is true: a tower that trains says something else at "
        "every step, leave one of them out"
    )


def test_another_tower_and_another_image_processor(
    made: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = "): run cache-vision with this student, or give the student it was run with"
    other = save_tiny_model(tmp_path / "other", STUDENT_SIZE, seed=7)
    message = made.refusal(capsys, tmp_path / "run", "--student", str(other))
    assert message.startswith(f"the student's vision tower is not the one of {made.vision} (weights_sha256: ")
    assert message.endswith(remedy)
    processed = tmp_path / "processed"
    shutil.copytree(made.student, processed)
    settings = json.loads((processed / "preprocessor_config.json").read_text())
    (processed / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    message = made.refusal(capsys, tmp_path / "run", "--student", str(processed))
    assert message.startswith(f"the student's image processor is not the one of {made.vision} (sha256: ")
    assert message.endswith(remedy)


def test_another_layer_of_the_same_tower(made: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(made.student, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "vision_feature_layer": -2}))
    assert "(feature_layer: -2 against -1)" in made.refusal(capsys, tmp_path / "run", "--student", str(other))


def test_a_student_with_the_same_tower_is_welcome(made: Inputs, tmp_path: Path) -> None:
    command = ["distill", "--data", made.data, "--cache", made.cache, "--vision-cache", made.vision]
    for student, out in ((made.student, "first"), (str(tmp_path / "first"), "second")):
        arguments = ["--student", student, "--set", "training.steps=2", "--out", str(tmp_path / out)]
        assert main([*command, *arguments]) == 0


def test_images_that_the_cache_lacks(
    made: Inputs, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = str(tmp_path / "part")
    command = ["cache-vision", "--student", made.student, "--data", made.data, "--out", part, "--limit", "4"]
    assert main(command) == 0
    assert made.refusal(capsys, tmp_path / "run", "--vision-cache", part) == (
        f"{part} lacks 2 of the {NUM_IMAGES} images of the data: run cache-vision with these data and the same --out, "
        "which adds them"
    )
    assert main([*command[:-2]]) == 0
    out = str(tmp_path / "run")
    given = ["--student", made.student, "--cache", made.cache, "--data", made.data, "--vision-cache", part]
    assert main(["distill", *given, "--out", out, "--set", "training.steps=1"]) == 0


def test_an_image_that_is_not_the_one_that_was_cached(
    made: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(made.photos, photos)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(photos / "3.png")
    data = made.data.replace(str(made.photos), str(photos))
    message = made.refusal(capsys, tmp_path / "run", "--data", data)
    assert message.startswith(f"sample '3': {made.vision} lacks its image (sha256 ")
    assert message.endswith("run cache-vision with these data and the same --out, which adds them")
    shutil.copy(made.photos / "2.png", photos / "3.png")  # the cache knows it, but not as the image of this sample
    assert made.refusal(capsys, tmp_path / "run", "--data", data).startswith(
        "sample '3': its image is not the one the teacher saw (sha256 "
    )


def test_one_kind_of_cache_in_the_place_of_the_other(
    made: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.refusal(capsys, tmp_path / "run", "--vision-cache", made.cache) == (
        f"{made.cache} holds what a teacher said about answers, expected was what a vision tower says about images: "
        "give a cache of cache-vision as --vision-cache"
    )
    expected = (
        f"{made.vision} holds what a vision tower says about images, expected was what a teacher said about answers: "
        "give it as --vision-cache, and a cache of cache-teacher as --cache"
    )
    assert made.refusal(capsys, tmp_path / "run", "--cache", made.vision) == expected
    capsys.readouterr()
    rescore = ["--rescore", "2", "--teacher", made.student, "--data", made.data]
    assert main(["cache", "verify", made.vision, *rescore]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"betakd-pipe: {expected}"
    assert "s3://bucket/vision is an URL: rows of a vision cache" in made.refusal(
        capsys, tmp_path / "run", "--vision-cache", "s3://bucket/vision"
    )


def test_a_family_with_more_than_one_place_between_tower_and_language_model(
    made: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qwen = str(folder_of("qwen2_5_vl"))
    assert main(["cache-vision", "--student", qwen, "--data", made.data, "--out", str(tmp_path / "vision")]) == 2
    expected = (
        "vision features of model type 'qwen2_5_vl' cannot be reused: between its tower and its language model there "
        "is more than one place, or a number of tokens that depends on the image; use a model of type llava or "
        "mobilevlm, or distil without a vision cache"
    )
    assert capsys.readouterr().err.splitlines()[-1] == f"betakd-pipe: {expected}"
    cache = str(tmp_path / "cache")
    assert main(["cache-teacher", "--teacher", qwen, "--data", made.data, "--out", cache]) == 0
    assert made.refusal(capsys, tmp_path / "run", "--student", qwen, "--cache", cache) == expected

"""LLaVA-style JSON: what it loads, and the images it refuses."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from betakd_stages.data import llava_json, load_samples
from betakd_stages.errors import DataError

TALK = [{"from": "human", "value": "<image>\nwhich digit is this ?"}, {"from": "gpt", "value": "7"}]


def write(folder: Path, entries: Any) -> str:
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return f"llava:{folder}/data.json?images={folder}/images"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(tmp_path / "images" / "a.png")
    return tmp_path


def test_turns_images_and_text_only_samples_load(folder: Path) -> None:
    two_turns = [*TALK, {"from": "human", "value": "is it even ?"}, {"from": "gpt", "value": "no"}]
    entries = [{"id": 1, "image": "a.png", "conversations": two_turns}, {"id": "t", "conversations": TALK[:2]}]
    first, second = load_samples(write(folder, entries))
    assert [(turn.question, turn.answer) for turn in first.turns] == [
        ("which digit is this ?", "7"),
        ("is it even ?", "no"),
    ]
    assert first.image is not None
    assert first.image.load().pixels.size == (20, 10)
    assert second.image is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"id": 1}, "holds a dict: expected a list of conversations"),
        ([{"conversations": TALK}], "entry 0 of {file} lacks 'id'"),
        ([{"id": 1, "conversations": TALK[:1]}], "entry 0 of {file}: speakers are ['human'], expected human and gpt"),
        ([{"id": 1, "conversations": TALK}] * 2, "id '1' occurs twice in {file}: ids must be distinct"),
    ],
)
def test_another_structure_is_refused_by_name(folder: Path, entries: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_samples(write(folder, entries))
    assert message.replace("{file}", f"{folder}/data.json") in str(caught.value)


def test_a_missing_file_and_one_that_is_not_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data file .*none.json cannot be read \\(No such file"):
        load_samples(f"llava:{tmp_path}/none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="bad.json is not JSON"):
        load_samples(f"llava:{tmp_path}/bad.json")


def image_error(folder: Path, name: str) -> str:
    (sample,) = load_samples(write(folder, [{"id": 1, "image": name, "conversations": TALK}]))
    assert sample.image is not None
    with pytest.raises(DataError) as caught:
        sample.image.load()
    return str(caught.value)


def test_images_stay_inside_their_folder(folder: Path) -> None:
    Image.new("RGB", (2, 2)).save(folder / "secret.png")
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    for name in ("../secret.png", str(folder / "secret.png"), "link.png"):
        assert f"image {name!r} leaves the image folder" in image_error(folder, name)


def test_broken_foreign_and_missing_images_are_refused(folder: Path) -> None:
    images = folder / "images"
    (images / "text.png").write_text("not an image")
    Image.effect_noise((200, 100), 50).save(images / "noise.png")
    content = (images / "noise.png").read_bytes()
    (images / "cut.png").write_bytes(content[: len(content) // 2])
    eps = io.BytesIO()
    Image.new("RGB", (2, 2)).save(eps, "EPS")
    (images / "vector.png").write_bytes(eps.getvalue())
    assert "text.png is none of JPEG, PNG" in image_error(folder, "text.png")
    assert "cut.png is corrupt" in image_error(folder, "cut.png")
    assert "vector.png is none of JPEG, PNG" in image_error(folder, "vector.png")
    assert "none.png cannot be read (No such file or directory)" in image_error(folder, "none.png")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_json, "MAX_PIXELS", 199)
    assert "a.png has 20 x 10 pixels: at most 199" in image_error(folder, "a.png")

"""ScienceQA in the authors' files and in the hub's columns: prompts, letters, images, refusals."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from betakd_stages.data import load_samples
from betakd_stages.errors import DataError

INSTRUCTION = "Answer with the option's letter from the given choices directly."
PROBLEM = {
    "question": "Which is bigger?",
    "choices": ["a cat", "an elephant", "an ant"],
    "answer": 1,
    "hint": "",
    "image": None,
    "subject": "natural science",
    "split": "train",
}


def write_original(folder: Path, problems: dict[str, Any], splits: dict[str, list[str]]) -> str:
    """The authors' files: images at images/{split}/{pid}/image.png."""
    (folder / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    (folder / "pid_splits.json").write_text(json.dumps(splits), encoding="utf-8")
    for pid, problem in problems.items():
        if problem.get("image"):
            place = folder / "images" / problem["split"] / pid
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), (9, 9, 9)).save(place / problem["image"])
    return f"scienceqa:{folder}"


def test_the_authors_files_load_with_images_and_text_only_samples_mixed(tmp_path: Path) -> None:
    problems = {
        "7": {**PROBLEM, "image": "image.png", "hint": "Look at the picture.\n"},
        "9": {**PROBLEM, "split": "val", "answer": 2, "image": "image.png"},
        "11": PROBLEM,
    }
    specification = write_original(tmp_path, problems, {"train": ["11", "7"], "minival": ["9"]})
    text_only, shown = load_samples(specification + "?split=train")
    assert text_only.sample_id == "11"
    assert text_only.image is None
    assert text_only.category == "natural science"
    assert text_only.turns[0].question == f"Which is bigger?\nA. a cat\nB. an elephant\nC. an ant\n{INSTRUCTION}"
    assert text_only.turns[0].answer == "B"
    assert shown.turns[0].question.startswith("Context: Look at the picture.\nWhich is bigger?\nA. a cat\n")
    assert shown.image is not None
    assert shown.image.load().pixels.size == (6, 4)
    (elsewhere,) = load_samples(specification + "?split=minival")  # its image lies under images/val
    assert elsewhere.turns[0].answer == "C"
    assert elsewhere.image is not None
    assert elsewhere.image.load().pixels.size == (6, 4)


def test_the_hubs_parquet_files_load_by_split(folder: Path) -> None:
    picture = {"bytes": (folder / "images" / "a.png").read_bytes(), "path": "image.png"}
    rows = [{**PROBLEM, "image": picture}, {**PROBLEM, "answer": 0}]
    (folder / "data").mkdir()
    for split, held in (("train", rows), ("test", rows[1:])):
        parquet.write_table(pa.Table.from_pylist(held), folder / "data" / f"{split}-00000-of-00001-c0ffee.parquet")
    shown, text_only = load_samples(f"scienceqa:{folder}?split=train")
    assert (shown.sample_id, shown.turns[0].answer) == ("0", "B")
    assert shown.image is not None
    assert shown.image.load().pixels.size == (20, 10)
    assert (text_only.sample_id, text_only.image, text_only.turns[0].answer) == ("1", None, "A")
    assert len(load_samples(f"scienceqa:{folder}?split=test")) == 1
    with pytest.raises(DataError) as caught:
        load_samples(f"scienceqa:{folder}?split=val")
    assert str(caught.value) == f"data {folder} has no split 'val': give one of its splits, split=test or split=train"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "its answer is 3: expected the number of a choice, 0 to 2"),
        ({"answer": "B"}, "its answer is 'B': expected the number of a choice, 0 to 2"),
        ({"choices": ["one"]}, "its choices are ['one']: expected a list of 2 to 26"),
        ({"choices": ["one", None]}, "a choice is missing: expected text"),
        ({"question": None}, "its 'question' is missing: expected text"),
    ],
)
def test_a_problem_that_cannot_be_asked_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    specification = write_original(tmp_path, {"1": {**PROBLEM, **change}}, {"train": ["1"]})
    with pytest.raises(DataError) as caught:
        load_samples(specification + "?split=train")
    assert str(caught.value) == f"row 0 of {tmp_path}: {message}"


def test_wrong_splits_and_files_are_refused(tmp_path: Path) -> None:
    specification = write_original(tmp_path, {"1": PROBLEM}, {"train": ["1", "2"], "test": []})

    def error(options: str) -> str:
        with pytest.raises(DataError) as caught:
            load_samples(specification + options)
        return str(caught.value)

    assert error("") == f"data {tmp_path} has no split '': give one of its splits, split=train or split=test"
    assert error("?split=train") == (
        f"{tmp_path}/problems.json lacks problem '2' of split train: download both files again"
    )
    (tmp_path / "pid_splits.json").write_text("[]")
    assert "pid_splits.json holds a list: expected an object, entries by name" in error("?split=train")
    (tmp_path / "pid_splits.json").write_text("{")
    assert "pid_splits.json is not JSON" in error("?split=train")
    (tmp_path / "pid_splits.json").unlink()
    assert "pid_splits.json cannot be read (No such file or directory): check the folder" in error("?split=train")


def test_an_image_name_in_the_problems_cannot_leave_the_folder(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    specification = write_original(tmp_path, {"1": PROBLEM}, {"train": ["1"]})
    (tmp_path / "problems.json").write_text(json.dumps({"1": {**PROBLEM, "image": "../../../secret.png"}}))
    (sample,) = load_samples(specification + "?split=train")
    assert sample.image is not None
    with pytest.raises(DataError, match="leaves the image folder"):
        sample.image.load()

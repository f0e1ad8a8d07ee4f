"""The "messages" form of Hugging Face datasets: roles, parts, images, system messages."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from betakd_stages.data import load_samples
from betakd_stages.errors import DataError

TALK = [{"role": "user", "content": "which digit is this ?"}, {"role": "assistant", "content": "7"}]
PARTS = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "which digit ?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"messages:{folder}/data.jsonl?images={folder}/images"


def test_text_and_parts_with_and_without_images_load_from_lines(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": TALK},
        {"messages": TALK, "images": []},
        {"messages": PARTS, "images": ["a.png"]},
        {"messages": TALK, "image": "a.png"},
    ]
    samples = load_samples(write(folder, rows))
    assert [sample.sample_id for sample in samples] == ["0", "1", "2", "3"]
    assert [sample.image is not None for sample in samples] == [False, False, True, True]
    assert (samples[2].turns[0].question, samples[2].turns[0].answer) == ("which digit ?", "7")
    assert samples[2].image is not None
    assert samples[2].image.load().pixels.size == (20, 10)


def test_a_folder_that_datasets_saved_loads_with_its_images_as_bytes(folder: Path) -> None:
    picture = {"bytes": (folder / "images" / "a.png").read_bytes(), "path": None}
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = datasets.Dataset.from_list(
        [{"messages": TALK, "images": [picture]}, {"messages": TALK, "images": []}], features=features
    )
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(folder / "saved")
    shown, text_only = load_samples(f"messages:{folder}/saved?split=train")
    assert shown.image is not None
    assert shown.image.load().pixels.getpixel((0, 0)) == (1, 2, 3)
    assert text_only.image is None
    assert len(load_samples(f"messages:{folder}/saved?split=test")) == 1
    with pytest.raises(DataError, match="saved has no split '': give one of its splits, split=train or split=test"):
        load_samples(f"messages:{folder}/saved")


def test_a_system_message_is_refused_dropped_or_prepended_as_the_user_says(folder: Path) -> None:
    specification = write(folder, [{"messages": [*SYSTEM, *TALK, *TALK]}])
    with pytest.raises(DataError, match="row 0 of .*: it has a system message, .*: say system=drop or system=prepend"):
        load_samples(specification)
    (dropped,), (prepended,) = (load_samples(f"{specification}&system={rule}") for rule in ("drop", "prepend"))
    assert [turn.question for turn in dropped.turns] == ["which digit is this ?"] * 2
    assert [turn.question for turn in prepended.turns] == [
        "Be brief.\n\nwhich digit is this ?",
        "which digit is this ?",
    ]
    with pytest.raises(DataError, match="system is 'keep': expected one of refuse, drop, prepend"):
        load_samples(f"{specification}&system=keep")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "it lacks 'messages' and has 'text': name the column with messages=COLUMN"),
        ({"messages": "hello"}, "its 'messages' is a str: expected a list of messages"),
        ({"messages": []}, "its speakers are [], expected user and assistant in turn"),
        ({"messages": TALK[1:]}, "its speakers are ['assistant'], expected user and assistant in turn"),
        (
            {"messages": [*TALK, {"role": "tool", "content": "x"}]},
            "its speakers are ['user', 'assistant', 'tool'], expected user and assistant in turn",
        ),
        ({"messages": [7]}, 'a message is a int: expected {"role", "content"}'),
        ({"messages": [{"role": "user"}]}, "it lacks 'content' and has 'role': add it"),
        ({"messages": [{"role": "user", "content": None}]}, "a message's 'content' is missing: expected text"),
        ({"messages": PARTS}, "its question shows <image>, but it names no image"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "a message has a part of type 'video': expected text or image",
        ),
        (
            {"messages": [{"role": "user", "content": ["hello"]}]},
            "a message has a part of type 'str': expected text or image",
        ),
        ({"messages": TALK, "images": ["a.png", "b.png"]}, "it has 2 images: expected one or none"),
    ],
)
def test_a_row_of_another_structure_is_refused_with_its_number(folder: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_samples(write(folder, [{"messages": TALK}, row]))
    assert str(caught.value).startswith(f"row 1 of {folder}/data.jsonl: {message}")


def test_a_named_image_column_without_any_image_is_refused(folder: Path) -> None:
    specification = write(folder, [{"messages": TALK, "picture": "a.png"}])
    assert load_samples(f"{specification}&image=picture")[0].image is not None
    with pytest.raises(DataError, match="data.jsonl has no image in 'photo': name the column of images"):
        load_samples(f"{specification}&image=photo")

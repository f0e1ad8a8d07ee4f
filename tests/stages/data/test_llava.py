"""LLaVA's form: what it loads, and what it refuses."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from betakd_stages.data import load_samples
from betakd_stages.errors import DataError

TALK = [{"from": "human", "value": "<image>\nwhich digit is this ?"}, {"from": "gpt", "value": "7"}]
TEXT = [{"from": "human", "value": "is five even ?"}, {"from": "gpt", "value": "no"}]


def write(folder: Path, entries: Any) -> str:
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return f"llava:{folder}/data.json?images={folder}/images"


def test_turns_images_and_text_only_samples_load(folder: Path) -> None:
    entries = [
        {"id": 1, "image": "a.png", "conversations": [*TALK, *TEXT], "category": "digits"},
        {"id": "t", "conversations": TEXT},
        {"id": "u", "image": "", "conversations": TEXT},
    ]
    first, second, third = load_samples(write(folder, entries))
    assert [(turn.question, turn.answer) for turn in first.turns] == [
        ("which digit is this ?", "7"),
        ("is five even ?", "no"),
    ]
    assert (first.sample_id, first.category) == ("1", "digits")
    assert first.image is not None
    assert first.image.load().pixels.size == (20, 10)
    assert (second.sample_id, second.image, third.image) == ("t", None, None)


def test_images_are_looked_for_beside_the_file_unless_a_folder_is_given(folder: Path) -> None:
    write(folder, [{"id": 1, "image": "images/a.png", "conversations": TALK}])
    (sample,) = load_samples(f"llava:{folder}/data.json")
    assert sample.image is not None
    assert sample.image.load().pixels.size == (20, 10)


def test_lines_of_json_give_the_same_samples_as_a_list(folder: Path) -> None:
    entries = [{"id": number, "conversations": TEXT} for number in range(3)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    as_list, as_lines = load_samples(write(folder, entries)), load_samples(f"llava:{folder}/data.jsonl")
    assert as_list.fingerprint == as_lines.fingerprint
    assert len(as_lines) == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"conversations": TEXT}, "it lacks 'id' and has 'conversations': name the column with id=COLUMN"),
        ({"id": 1}, "it lacks 'conversations' and has 'id': add it"),
        ({"id": 1.5, "conversations": TEXT}, "its 'id' is a float: expected text"),
        ({"id": 1, "conversations": None}, "its 'conversations' is a NoneType: expected a list of messages"),
        ({"id": 1, "conversations": []}, "its speakers are [], expected human and gpt in turn"),
        ({"id": 1, "conversations": TEXT[:1]}, "its speakers are ['human'], expected human and gpt in turn"),
        ({"id": 1, "conversations": TEXT[::-1]}, "its speakers are ['gpt', 'human'], expected human and gpt in turn"),
        ({"id": 1, "conversations": ["hello"]}, 'a message is a str: expected {"from", "value"}'),
        ({"id": 1, "conversations": [{"from": "human"}]}, "it lacks 'value' and has 'from': add it"),
        (
            {"id": 1, "conversations": [TEXT[0], {"from": "gpt", "value": None}]},
            "a message's 'value' is missing: expected text",
        ),
        (
            {"id": 1, "conversations": [TEXT[0], {"from": "gpt", "value": "\ud800"}]},
            "a message's 'value' holds half a surrogate pair",
        ),
        ({"id": 1, "conversations": TALK}, "its question shows <image>, but it names no image: add the image"),
        (
            {"id": 1, "image": "a.png", "conversations": [*TEXT, *TALK]},
            "<image> stands 1 times in it: expected at most once, in the first question",
        ),
        (
            {"id": 1, "image": "a.png", "conversations": [*TALK, *TALK]},
            "<image> stands 2 times in it: expected at most once, in the first question",
        ),
        ({"id": 1, "image": ["a.png", "b.png"], "conversations": TALK}, "it has 2 images: expected one or none"),
        ({"id": 1, "image": 7, "conversations": TALK}, "its image is a int: expected a path inside the image folder"),
    ],
)
def test_an_entry_of_another_structure_is_refused_with_its_row(folder: Path, entry: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_samples(write(folder, [{"id": 0, "conversations": TEXT}, entry]))
    assert str(caught.value).startswith(f"row 1 of {folder}/data.json: {message}")
    assert "\n" not in str(caught.value)


def test_an_id_that_occurs_twice_is_refused_and_rows_can_be_numbered_instead(folder: Path) -> None:
    specification = write(folder, [{"id": name, "conversations": TEXT} for name in ("a", "b", "a")])
    with pytest.raises(DataError) as caught:
        load_samples(specification)
    assert str(caught.value) == (
        f"id 'a' occurs twice in {folder}/data.json, rows 0 and 2: ids must be distinct, mend them or number the rows "
        "with an empty option, id="
    )
    assert [sample.sample_id for sample in load_samples(specification + "&id=")] == ["0", "1", "2"]


def test_unusable_rows_are_skipped_only_when_asked_and_then_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{"id": "a", "conversations": TEXT}, {"id": "b"}, {"id": "c", "conversations": TEXT}]
    specification = write(folder, entries)
    with caplog.at_level(logging.WARNING):
        samples = load_samples(specification + "&unusable=skip")
    assert [sample.sample_id for sample in samples] == ["a", "c"]
    assert f"{folder}/data.json: skipped 1 of 3 rows, first row 1 of" in caplog.text
    with pytest.raises(DataError, match="unusable is 'ignore': expected stop or skip"):
        load_samples(specification + "&unusable=ignore")


def test_data_without_any_sample_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="data.json gives no sample: it has no rows"):
        load_samples(write(folder, []))
    with pytest.raises(DataError, match="gives no sample: row 0 of .*data.json: it lacks 'conversations'"):
        load_samples(write(folder, [{"id": 1}]) + "&unusable=skip")

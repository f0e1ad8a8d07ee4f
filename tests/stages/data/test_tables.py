"""Tables with a column each, image folders, and where rows may come from."""

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from betakd_stages.data import load_samples
from betakd_stages.data.arrow_rows import StoredImage
from betakd_stages.errors import DataError

QUESTIONS = {"question": ["<image>\nwhich digit ?", "is five even ?"], "answer": ["7", "no"]}


def pictures(folder: Path) -> list[dict[str, Any] | None]:
    return [{"bytes": (folder / "images" / "a.png").read_bytes(), "path": None}, None]


def write_parquet(folder: Path, columns: dict[str, Any], name: str = "data.parquet") -> str:
    parquet.write_table(pa.table(columns), folder / name)
    return f"table:{folder}/{name}"


def error(specification: str) -> str:
    with pytest.raises(DataError) as caught:
        load_samples(specification)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_loads_with_image_bytes_left_in_the_table(folder: Path) -> None:
    specification = write_parquet(folder, {**QUESTIONS, "image": pictures(folder), "kind": ["which", "even"]})
    shown, text_only = samples = load_samples(specification + "?category=kind")
    assert isinstance(shown.image, StoredImage)
    assert shown.image.load().pixels.size == (20, 10)
    assert shown.image.sha256() == shown.image.load().sha256
    assert (shown.turns[0].question, shown.turns[0].answer, shown.category) == ("which digit ?", "7", "which")
    assert (text_only.image, text_only.category) == (None, "even")
    again = pickle.loads(pickle.dumps(samples))  # noqa: S301 - as DataLoader workers do
    assert again[0].image.load().sha256 == shown.image.load().sha256


def test_columns_have_the_names_that_options_give_and_numbers_are_answers(folder: Path) -> None:
    specification = write_parquet(folder, {"q": ["how many ?"], "a": [3], "file": ["a.png"], "key": ["k"]})
    (sample,) = load_samples(f"{specification}?question=q&answer=a&image=file&id=key&images={folder}/images")
    assert (sample.sample_id, sample.turns[0].answer) == ("k", "3")
    assert sample.image is not None
    assert sample.image.load().pixels.size == (20, 10)
    assert error(specification) == (
        f"row 0 of {folder}/data.parquet: it lacks 'question' and has 'q', 'a', 'file', 'key': name the column with "
        "question=COLUMN"
    )


def test_binary_cells_and_arrow_files_of_both_kinds_load(folder: Path) -> None:
    content = (folder / "images" / "a.png").read_bytes()
    table = pa.table({**QUESTIONS, "image": [content, None]})
    for name, new in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(f"{folder}/{name}", "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
        shown, text_only = load_samples(f"table:{folder}/{name}")
        assert shown.image is not None
        assert shown.image.load().pixels.size == (20, 10)
        assert text_only.image is None


def test_several_parquet_files_and_a_folder_of_them_load_in_order(folder: Path) -> None:
    for number in range(3):
        write_parquet(folder, {"question": ["is it even ?"], "answer": [str(number)]}, f"train-{number}.parquet")
    by_pattern = load_samples(f"table:{folder}/train-*.parquet")
    (folder / "README.md").write_text("not data")
    by_folder = load_samples(f"table:{folder}")
    assert [sample.turns[0].answer for sample in by_pattern] == ["0", "1", "2"]
    assert by_pattern.fingerprint == by_folder.fingerprint
    write_parquet(folder, {"question": ["is it odd ?"], "answer": ["no"]}, "test_sft-00000-of-00001.parquet")
    assert len(load_samples(f"table:{folder}?split=test_sft")) == 1
    assert error(f"table:{folder}") == (
        f"data {folder} has no split '': give one of its splits, split=test_sft or split=train"
    )


def test_a_changed_parquet_file_is_read_again(folder: Path) -> None:
    specification = write_parquet(folder, {"question": ["q"], "answer": ["old"]})
    assert load_samples(specification)[0].turns[0].answer == "old"
    write_parquet(folder, {"question": ["q"], "answer": ["new"]})
    assert load_samples(specification)[0].turns[0].answer == "new"


def test_a_table_is_not_in_memory(folder: Path) -> None:
    noise = Image.effect_noise((1000, 1000), 100)
    noise.save(folder / "images" / "noise.png")
    content = (folder / "images" / "noise.png").read_bytes()
    specification = write_parquet(
        folder, {"question": ["what ?"] * 40, "answer": ["noise"] * 40, "image": [content] * 40}
    )
    before = pa.total_allocated_bytes()
    samples = load_samples(specification)
    assert samples.fingerprint
    assert samples[39].image is not None
    assert pa.total_allocated_bytes() - before < 2 * len(content) < 40 * len(content) / 10


def test_broken_stored_images_are_refused_when_they_are_loaded(folder: Path) -> None:
    specification = write_parquet(folder, {**QUESTIONS, "image": [b"not an image", None]})
    image = load_samples(specification)[0].image
    assert image is not None
    with pytest.raises(DataError) as caught:
        image.load()
    assert str(caught.value).startswith(f"image in column 'image' of row 0 of {folder}/data.parquet is none of JPEG")


def test_image_folders_load_with_captions_or_with_the_names_of_their_folders(tmp_path: Path) -> None:
    captioned, sorted_by_kind = tmp_path / "captioned", tmp_path / "sorted"
    for path in (captioned / "1.png", sorted_by_kind / "cat" / "1.png", sorted_by_kind / "dog" / "1.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (captioned / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "a black square"}) + "\n")
    (sample,) = load_samples(f"imagefolder:{captioned}")
    assert (sample.turns[0].question, sample.turns[0].answer) == ("Describe the image.", "a black square")
    assert sample.image is not None
    assert sample.image.load().pixels.size == (4, 4)
    labelled = load_samples(f"imagefolder:{sorted_by_kind}?answer=label&ask=which animal ?")
    assert [(one.turns[0].question, one.turns[0].answer) for one in labelled] == [
        ("which animal ?", "cat"),
        ("which animal ?", "dog"),
    ]
    assert error(f"imagefolder:{sorted_by_kind}") == (
        f"row 0 of {sorted_by_kind}: it lacks 'text' and has 'image', 'label': name the column with answer=COLUMN"
    )
    assert f"data {tmp_path}/none cannot be read (" in error(f"imagefolder:{tmp_path}/none")


def test_an_image_folder_cannot_be_left_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    (tmp_path / "folder" / "dog").mkdir()
    for name in ("secret.png", "folder/dog/1.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "folder" / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
    image = load_samples(f"imagefolder:{tmp_path}/folder?answer=label")[0].image
    assert image is not None
    with pytest.raises(DataError, match="leaves the image folder"):
        image.load()


def test_text_of_a_table_that_is_not_utf8_is_refused(folder: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 2], dtype=np.int32).tobytes())
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"A\xff")])
    specification = write_parquet(folder, {"question": broken, "answer": ["a"]})
    assert error(specification) == (
        f"row 0 of {folder}/data.parquet: its 'question' is not UTF-8 (invalid start byte): correct the text"
    )


def test_a_missing_class_label_is_refused(tmp_path: Path) -> None:
    features = datasets.Features({"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no"])})
    rows = [{"question": "q", "answer": 0}, {"question": "q", "answer": -1}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    assert load_samples(f"table:{tmp_path}/saved?unusable=skip")[0].turns[0].answer == "no"
    assert "row 1 of" in error(f"table:{tmp_path}/saved")
    assert "its 'answer' is missing: expected text" in error(f"table:{tmp_path}/saved")


def test_places_without_data_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bad.parquet").write_text("hello")
    (folder / "data.json").write_text("[]")
    assert error(f"table:{folder}/images").startswith(
        f"'{folder}/images' is no data: expected a .json, .jsonl, .parquet or .arrow file, a folder of Parquet files"
    )
    assert f"data {folder}/bad.parquet cannot be read (" in error(f"table:{folder}/bad.parquet")
    assert f"data {folder}/none.parquet cannot be read (" in error(f"table:{folder}/none.parquet")
    assert error(f"table:{folder}/data.json?split=train") == (
        f"split=train is given, but {folder}/data.json is one file without splits: leave it out"
    )
    assert error(f"table:{folder}/data.json?revision=main") == (
        f"revision=main is given, but '{folder}/data.json' is local: only hub:OWNER/NAME has one"
    )
    assert error("table:hub:pandas") == "'hub:pandas' is no name on the hub: expected hub:OWNER/NAME"
    assert error("table:hub:owner/name").startswith("data hub:owner/name cannot be read (")
    (folder / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert error("table:hub:owner/name").startswith("'hub:owner/name' is also a folder here: leave out hub: to read it")


def test_paths_of_images_need_a_folder_where_the_data_have_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"question": "q", "answer": "a", "image": "a.png"}])
    asked: dict[str, Any] = {}

    def load_dataset(path: str, **options: Any) -> datasets.DatasetDict:
        asked.update(options, path=path)
        return datasets.DatasetDict({"train": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert error("table:hub:owner/name?subset=small&revision=v1") == (
        "row 0 of hub:owner/name: its image 'a.png' is a path, and the data have no folder: give images=DIR"
    )
    assert asked == {"path": "owner/name", "name": "small", "revision": "v1"}
    (sample,) = load_samples(f"table:hub:owner/name?images={folder}/images")
    assert sample.image is not None
    assert sample.image.load().pixels.size == (20, 10)

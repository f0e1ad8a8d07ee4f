"""Data that come as rows: where the rows are, and how they become samples that are made when they are needed.

A source adds one function from a row to its content; ids, images, refusals and laziness are here.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from betakd_stages.data.arrow_rows import StoredImage, chosen_split, load_arrow_rows
from betakd_stages.data.images import ImageFile
from betakd_stages.data.json_rows import JsonRows
from betakd_stages.data.sample import ImageReference, LazySamples, Sample, SampleSet, Turn
from betakd_stages.data.specification import DataSpecification
from betakd_stages.errors import DataError

logger = logging.getLogger(__name__)

HUB = "hub:"
SPLIT_OF_FILE = re.compile(r"[A-Za-z]+(_[A-Za-z]+)*")
HUB_NAME = re.compile(r"hub:[A-Za-z0-9][\w.-]*/[\w.-]+")
PLACE_OPTIONS = {"split": "", "images": "", "subset": "", "revision": "", "id": "", "unusable": "stop"}
"""The options of every source of rows; `id` names the column of ids, empty for the number of the row."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What a row says; `image` is a path, a stored image, a list of at most one of these, or nothing."""

    turns: tuple[Turn, ...]
    image: Any = None
    category: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, and how each becomes a sample."""

    name: str
    rows: Sequence[Row]
    image_folder: str
    id_column: str
    read: Callable[[Row], Content]

    def sample(self, index: int) -> Sample:
        """The sample of row `index`. Raises DataError, naming the row, where it cannot be one."""
        row = self.rows[index]
        try:
            content = self.read(row)
            return Sample(self._id(row, index), self._image(content.image), content.turns, content.category)
        except DataError as error:
            raise DataError(f"row {index} of {self.name}: {error}") from None

    def _id(self, row: Row, index: int) -> str:
        if not self.id_column:
            return str(index)
        return text_of(cell(row, self.id_column, "id"), f"its {self.id_column!r}")

    def _image(self, value: Any) -> ImageReference | None:
        if isinstance(value, list):
            if len(value) > 1:
                raise DataError(f"it has {len(value)} images: expected one or none, leave it out or split it")
            value = value[0] if value else None
        if value is None or value == "":
            return None
        if isinstance(value, StoredImage):
            return value
        if not isinstance(value, str):
            raise DataError(f"its image is a {type(value).__name__}: expected a path inside the image folder")
        if not self.image_folder:
            raise DataError(f"its image {value!r} is a path, and the data have no folder: give images=DIR")
        return ImageFile(self.image_folder, value)


def cell(row: Row, column: str, option: str = "") -> Any:
    """The row's value in a column. Raises DataError where the row lacks it; `option` is the one that names it."""
    try:
        return row[column]
    except KeyError:
        remedy = f"name the column with {option}=COLUMN" if option else "add it"
        raise DataError(f"it lacks {column!r} and has {', '.join(map(repr, row)) or 'nothing'}: {remedy}") from None


def text_of(value: Any, what: str) -> str:
    """The text of a cell; a whole number's is its digits. Raises DataError, naming `what`, for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{what} is {'missing' if value is None else f'a {type(value).__name__}'}: expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} holds half a surrogate pair, which no tokenizer takes: correct the text") from None
    return value


def open_rows(argument: str, options: Mapping[str, Any]) -> Sequence[Row]:
    """The rows of a file, a folder or `hub:OWNER/NAME`. Raises DataError for what is none of these."""
    split = options["split"]
    if argument.startswith(HUB):
        if not HUB_NAME.fullmatch(argument):
            raise DataError(f"{argument!r} is no name on the hub: expected {HUB}OWNER/NAME")
        if Path(argument.removeprefix(HUB)).exists():  # `datasets` would read it
            raise DataError(f"{argument!r} is also a folder here: leave out {HUB} to read it, or go elsewhere")
        places = {"name": options["subset"], "revision": options["revision"]}
        given = {key: value for key, value in places.items() if value}
        return load_arrow_rows(argument, split, argument.removeprefix(HUB), **given)
    for name in ("subset", "revision"):
        if options[name]:
            raise DataError(f"{name}={options[name]} is given, but {argument!r} is local: only hub:OWNER/NAME has one")
    path = Path(argument)
    if path.suffix in (".json", ".jsonl"):
        if split:
            raise DataError(f"split={split} is given, but {path} is one file without splits: leave it out")
        return JsonRows(path)
    if path.suffix in (".parquet", ".arrow"):
        return load_arrow_rows(argument, split, path.suffix[1:], data_files=argument)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return load_arrow_rows(argument, split, "saved", folder=argument)
    files = _parquet_files(path)
    if files:
        split = chosen_split(argument, list(files), split)
        return load_arrow_rows(argument, split, "parquet", data_files={split: files[split]})
    raise DataError(
        f"{argument!r} is no data: expected a .json, .jsonl, .parquet or .arrow file, a folder of Parquet files or "
        "one written by save_to_disk, or hub:OWNER/NAME"
    )


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """The Parquet files of a folder, or of its `data` as the hub has it, by split: what a name begins with, up to the
    first digit or dash (train-00000-of-00003.parquet belongs to train)."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet")):
        begin = SPLIT_OF_FILE.match(path.name)
        found.setdefault(begin[0] if begin else "train", []).append(str(path))
    return found


def image_folder(argument: str, options: Mapping[str, Any]) -> str:
    """The folder that paths of images stay in: `images`, else the data's own folder, none for the hub."""
    if options["images"] or argument.startswith(HUB):
        return str(options["images"])
    path = Path(argument)
    return str(path if path.is_dir() else path.parent)


def table_samples(
    specification: DataSpecification, options: Mapping[str, Any], read: Callable[[Row], Content]
) -> SampleSet:
    """The samples of the rows that the specification names; `options` hold PLACE_OPTIONS."""
    folder = image_folder(specification.argument, options)
    rows = open_rows(specification.argument, options)
    table = Table(specification.argument, rows, folder, options["id"], read)
    return checked_samples(specification, options, table)


def checked_samples(specification: DataSpecification, options: Mapping[str, Any], table: Table) -> SampleSet:
    """All samples of the table, after one pass over it; images are not read.

    Raises DataError for a row that cannot be a sample (unless unusable=skip), for an id that occurs twice, where no
    sample is left, and where the image column that the specification names holds no image.
    """
    if options["unusable"] not in ("stop", "skip"):
        raise DataError(f"unusable is {options['unusable']!r}: expected stop or skip")
    row_of: dict[str, int] = {}
    unusable: list[str] = []
    num_images = 0
    for index in range(len(table.rows)):
        try:
            sample = table.sample(index)
        except DataError as error:
            if options["unusable"] == "stop":
                raise
            unusable.append(str(error))
            continue
        if row_of.setdefault(sample.sample_id, index) != index:
            raise DataError(
                f"id {sample.sample_id!r} occurs twice in {table.name}, rows {row_of[sample.sample_id]} and {index}: "
                "ids must be distinct, mend them or number the rows with an empty option, id="
            )
        num_images += sample.image is not None
    if not row_of:
        raise DataError(f"{table.name} gives no sample: " + (unusable[0] if unusable else "it has no rows"))
    if "image" in specification.options and not num_images:
        raise DataError(f"{table.name} has no image in {specification.options['image']!r}: name the column of images")
    if unusable:
        logger.warning("%s: skipped %d of %d rows, first %s", table.name, len(unusable), len(table.rows), unusable[0])
    return SampleSet(specification.canonical(), LazySamples(table.sample, np.fromiter(row_of.values(), dtype=np.int64)))

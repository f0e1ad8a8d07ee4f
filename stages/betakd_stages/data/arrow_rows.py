"""Rows of an Arrow table on disk, through Hugging Face `datasets`: mapped into memory, read where they are touched.

Parquet is first copied to such a table in the cache of `datasets` (HF_DATASETS_CACHE); rows of Parquet itself cannot
be found one by one. Images stay bytes in the table until they are loaded.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from betakd_stages.data.images import decode_image
from betakd_stages.data.sample import LoadedImage
from betakd_stages.errors import DataError

IMAGE_FIELDS = {"bytes", "path"}


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image whose bytes are a cell of a table, or one of a cell's list."""

    rows: "ArrowRows"
    column: str
    index: int
    place: int | None

    def load(self) -> LoadedImage:
        """The cell's image as RGB. Raises DataError where it cannot be decoded."""
        content = self._content()
        name = f"in column {self.column!r} of row {self.index} of {self.rows.name}"
        return LoadedImage(decode_image(content, name), hashlib.sha256(content).hexdigest())

    def sha256(self) -> str:
        """The sha256 of the cell's bytes."""
        return hashlib.sha256(self._content()).hexdigest()

    def _content(self) -> bytes:
        cell = self.rows.cell(self.column, self.index)
        if self.place is not None:
            cell = cell[self.place]
        content: bytes = (cell["bytes"] if pa.types.is_struct(cell.type) else cell).as_py()
        return content


class ArrowRows(Sequence[Mapping[str, Any]]):
    """The rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self.name = name
        self.features = dataset.features  # a deep copy at every look

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return ArrowRow(self, index)

    def cell(self, column: str, index: int) -> Any:
        """The Arrow scalar there; nothing is copied."""
        return self._dataset.data.column(column)[index]

    def label(self, column: str, value: Any) -> Any:
        """The name of a class label's number, None for a missing label; any other value as it is."""
        feature = self.features[column]
        if not hasattr(feature, "int2str"):
            return value
        return feature.int2str(value) if value >= 0 else None


class ArrowRow(Mapping[str, Any]):
    """One row; a cell is converted when it is asked for. An image is a StoredImage, or its path if it has no bytes."""

    def __init__(self, rows: ArrowRows, index: int) -> None:
        self._rows = rows
        self._index = index

    def __len__(self) -> int:
        return len(self._rows.features)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.features)

    def __contains__(self, column: object) -> bool:
        return column in self._rows.features

    def __getitem__(self, column: str) -> Any:
        if column not in self:
            raise KeyError(column)
        cell = self._rows.cell(column, self._index)
        if not cell.is_valid:
            return None
        if _is_image(cell.type):
            return self._image(cell, column, None)
        if isinstance(cell, pa.ListScalar | pa.LargeListScalar) and _is_image(cell.type.value_type):
            return [self._image(item, column, place) for place, item in enumerate(cell) if item.is_valid]
        try:
            return self._rows.label(column, cell.as_py())
        except UnicodeDecodeError as error:
            raise DataError(f"its {column!r} is not UTF-8 ({error.reason}): correct the text") from None

    def _image(self, cell: Any, column: str, place: int | None) -> Any:
        if pa.types.is_struct(cell.type) and not cell["bytes"].is_valid:
            return cell["path"].as_py()
        return StoredImage(self._rows, column, self._index, place)


def _is_image(arrow_type: Any) -> bool:
    if pa.types.is_struct(arrow_type):
        return {field.name for field in arrow_type} == IMAGE_FIELDS
    return pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type)


def load_arrow_rows(data: str, split: str, kind: str, **source: Any) -> ArrowRows:
    """The rows of one split of what `datasets` reads: `kind` is a format of local files, a hub name, or "saved".

    `data` names it in errors; `source`: what `load_dataset` is given besides, or `folder` of a saved dataset.
    Raises DataError for data that cannot be read, and where `split` is none of the splits, or empty while there are
    several.
    """
    import datasets  # takes a second

    try:
        is_saved = kind == "saved"
        loaded = datasets.load_from_disk(source["folder"]) if is_saved else datasets.load_dataset(kind, **source)
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(f"data {data} cannot be read ({cause}): check the name and the files") from None
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    return ArrowRows(loaded[chosen_split(data, list(loaded), split)], data)


def chosen_split(data: str, splits: Sequence[str], split: str) -> str:
    """The split asked for, or the only one. Raises DataError where there is no such split, or none is asked for."""
    chosen = splits[0] if len(splits) == 1 and not split else split
    if chosen not in splits:
        known = " or ".join(f"split={name}" for name in splits)
        raise DataError(f"data {data} has no split {split!r}: give one of its splits, {known}")
    return chosen

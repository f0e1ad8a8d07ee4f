"""teacher_weights.parquet of a run folder: what each teacher counts for each sample, where that was fitted.

One row per sample: sample_id, and `teacher1` to `teacherT`, the trust in each (rule trust) or its weight (learned).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from betakd_cache import files
from betakd_stages.errors import MismatchError

TEACHER_WEIGHTS = "teacher_weights.parquet"


def write_teacher_weights(path: Path, sample_ids: Sequence[str], given: NDArray[np.float32]) -> None:
    """Write the numbers `[S, T]` of these samples, in one step."""
    columns = {f"teacher{number}": pa.array(values) for number, values in enumerate(given.T, start=1)}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"sample_id": pa.array(sample_ids, pa.string()), **columns}), buffer, compression="zstd")
    files.replace_whole(path, path.with_name(f".tmp-{path.name}"), buffer.getvalue())


def read_teacher_weights(path: Path, sample_ids: Sequence[str], num_teachers: int) -> NDArray[np.float32]:
    """The numbers `[S, T]` of these samples. Raises MismatchError where the file is not of them."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise MismatchError(f"{path} cannot be read ({error}): delete it, it is fitted again") from error
    places = {name: place for place, name in enumerate(table["sample_id"].to_pylist())}
    missing = [name for name in sample_ids if name not in places]
    if missing or table.num_columns != 1 + num_teachers:
        raise MismatchError(
            f"{path} is of {table.num_columns - 1} teachers and lacks {len(missing)} of {len(sample_ids)} samples, "
            f"expected {num_teachers} teachers and all of them: delete it, it is fitted again"
        )
    values = np.stack([table[f"teacher{number}"].to_numpy() for number in range(1, num_teachers + 1)], axis=1)
    return values[[places[name] for name in sample_ids]].astype(np.float32)

"""Predictions made anywhere: JSONL or a JSON list, a row per question, as the scripts of the LLaVA line write them."""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from betakd_stages.data.json_rows import JsonRows
from betakd_stages.data.tables import text_of
from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks.base import Benchmark, Prediction
from betakd_stages.evaluation.benchmarks.reading import named

ID_KEYS = ("question_id", "questionId", "index")
TEXT_KEYS = ("text", "prediction")


def read_predictions(path: Path, benchmark: Benchmark) -> list[Prediction | None]:
    """The predictions of the benchmark's samples in their order, None for a missing one where the rule counts it wrong.

    Raises DataError for rows of another form, for a question answered twice or not asked, and for a missing one where
    the rule refuses it.
    """
    places: dict[Hashable, list[int]] = defaultdict(list)  # several where a benchmark asks the same twice
    for position, row in enumerate(benchmark.rows):
        places[benchmark.key(row)].append(position)
    left = {key: iter(positions) for key, positions in places.items()}
    found: list[Prediction | None] = [None] * len(benchmark.rows)
    for number, row in enumerate(JsonRows(path), start=1):
        with named(f"row {number} of {path}"):
            key, prediction = _read(row, benchmark)
            if key not in left:
                raise DataError(f"{benchmark.name} does not ask {key!r}: score it on the files it was made with")
            place = next(left[key], None)
            if place is None:
                raise DataError(f"it answers {key!r}, which a row before it answers: keep one of them")
            found[place] = prediction
    absent = [row for row, prediction in zip(benchmark.rows, found, strict=True) if prediction is None]
    if absent and benchmark.missing == "refused":
        raise DataError(
            f"{path} lacks {len(absent)} of {len(found)} questions of {benchmark.name}, the first "
            f"{benchmark.key(absent[0])!r}: its rule wants an answer to each"
        )
    return found


def _read(row: Mapping[str, Any], benchmark: Benchmark) -> tuple[Hashable, Prediction]:
    number, text = _first(row, ID_KEYS), _first(row, TEXT_KEYS)
    prompt = row.get("prompt")
    if benchmark.reads_prompts and not isinstance(prompt, str):
        raise DataError(f"it lacks 'prompt', which the rule of {benchmark.name} reads: add what was asked")
    confidence = row.get("confidence")
    if confidence is not None and not (isinstance(confidence, int | float) and 0 <= confidence <= 1):
        raise DataError(f"its confidence is {confidence!r}: expected a probability")
    prediction = Prediction(text_of(text, "its text"), prompt or "", confidence)
    return benchmark.key({"question_id": text_of(number, "its id"), "prompt": prediction.prompt}), prediction


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise DataError(f"it has {', '.join(map(repr, row)) or 'nothing'}: expected one of {', '.join(names)}")

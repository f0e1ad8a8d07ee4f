"""What a cache remembers of answers that the teacher wrote, beside their tokens: where one ends and the next begins.

The row of such a record has the tokens of each answer in the column `answer_lengths`: `3,256+` are two answers, of
which the second was cut off. No torch in here: the command line reads it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from betakd_cache import Manifest, TeacherCache, open_cache
from betakd_stages.data.asked import SUFFIX

ANSWER_LENGTHS = "answer_lengths"
CUT = "+"


@dataclass(frozen=True, slots=True)
class WrittenCounts:
    """How many records of a cache are of answers that the teacher wrote, and how many of those answers were cut off."""

    num_generated: int = 0
    num_cut_answers: int = 0


def length_text(lengths: Sequence[tuple[int, bool]]) -> str:
    """What the row has for answers of so many tokens, each with whether it was cut off."""
    return ",".join(f"{length}{CUT if is_cut else ''}" for length, is_cut in lengths)


def parse_lengths(text: str) -> list[tuple[int, bool]]:
    """The lengths that `length_text` wrote."""
    return [(int(part.removesuffix(CUT)), part.endswith(CUT)) for part in text.split(",")]


def targets_of(manifest: Manifest) -> list[str]:
    """The targets that a cache was made for; one that names none is of the data's answers."""
    named: dict[str, Any] = manifest.identity.get("targets", {"kinds": ["data"]})
    return list(named["kinds"])


def count_written(path: Path | str) -> WrittenCounts:
    """The counts of the cache at `path`, which may still be open."""
    cache = open_cache(path, allow_incomplete=True)
    return _count(cache) if "generate" in targets_of(cache.manifest) else WrittenCounts()


def _count(cache: TeacherCache) -> WrittenCounts:
    num_generated = pc.sum(pc.ends_with(cache.sample_ids, SUFFIX)).as_py() or 0
    if not num_generated:
        return WrittenCounts()  # an open cache, of which the data's part came first: no shard has the column yet
    lengths = cache.rows([ANSWER_LENGTHS])[ANSWER_LENGTHS]
    return WrittenCounts(num_generated, pc.sum(pc.count_substring(lengths, CUT)).as_py())

"""How what belongs to one of several teachers is called: `fkl@1` is the energy fkl against the first teacher.

In a cache of their mixture names have to be plain: `prompt_1` is the feature prompt of the first teacher.
"""

import re
from collections.abc import Iterable

MARK = "@"
STORED_NUMBER = re.compile(r"(_[0-9]+)+$")


def numbered(name: str, teacher: int) -> str:
    """The name of a teacher's own, by its index from 0."""
    return f"{name}{MARK}{teacher + 1}"


def plain(name: str) -> str:
    """The name without a teacher, marked here or in the cache of a mixture."""
    return STORED_NUMBER.sub("", in_its_cache(name))


def in_its_cache(name: str) -> str:
    """What the teacher's own cache calls it."""
    return name.partition(MARK)[0]


def stored(name: str) -> str:
    """What the cache of a mixture calls it."""
    return name.replace(MARK, "_")


def owner(name: str) -> int:
    """The index of the teacher that a name belongs to; 0 where it names none."""
    number = name.partition(MARK)[2]
    return int(number) - 1 if number else 0


def of_all_teachers(name: str, known: Iterable[str]) -> list[str]:
    """The known names that a name stands for: itself where it is known, else every teacher's; itself where none is."""
    known = list(known)
    numbers = [other for other in known if plain(other) == name]
    return [name] if name in known or not numbers else numbers

"""How what belongs to one of several teachers is called: `fkl@1` is the energy fkl against the first teacher."""

from collections.abc import Iterable

MARK = "@"


def numbered(name: str, teacher: int) -> str:
    """The name of a teacher's own, by its index from 0."""
    return f"{name}{MARK}{teacher + 1}"


def plain(name: str) -> str:
    """The name without a teacher."""
    return name.partition(MARK)[0]


def owner(name: str) -> int:
    """The index of the teacher that a name belongs to; 0 where it names none."""
    number = name.partition(MARK)[2]
    return int(number) - 1 if number else 0


def of_all_teachers(name: str, known: Iterable[str]) -> list[str]:
    """The known names that a name stands for: itself where it is known, else every teacher's; itself where none is."""
    known = list(known)
    numbers = [other for other in known if plain(other) == name]
    return [name] if name in known or not numbers else numbers

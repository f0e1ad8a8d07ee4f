"""Untrained models of the demo's sizes and a small cache: what most tests of the stages start from."""

from dataclasses import dataclass
from pathlib import Path

DATA = "digits:transfer?count=48&seed=3&label_noise=0.2"


@dataclass(frozen=True, slots=True)
class World:
    """Untrained models of the demo's sizes, and the teacher's cache over 48 questions."""

    teacher: Path
    student: Path
    cache: Path
    data: str

"""What is shown of a sample: plain numbers and text, ready for a terminal or a page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class Guess:
    """A token as text, and the probability that a model gives it at temperature 1."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class TokenView:
    """One supervised token."""

    label: str
    teacher_label_probability: float | None
    """None where the run had no teacher."""
    student_label_probability: float
    teacher: tuple[Guess, ...]
    """The most probable tokens first; as many as asked for, or as the cache kept."""
    teacher_rest: float
    """The teacher's probability of all tokens that are not in `teacher`."""
    student: tuple[Guess, ...]
    student_rest: float
    energies: Mapping[str, float]
    """By name, unweighted; energies on tokens only, not those of features."""

    @property
    def cross_entropy(self) -> float:
        """Nats."""
        return -math.log(self.student_label_probability) if self.student_label_probability > 0 else math.inf


@dataclass(frozen=True, slots=True)
class ChannelView:
    """One term of a sample's objective: the mean over its tokens, and the weight. None where the sample lacks it."""

    name: str
    value: float | None
    weight: float | None


@dataclass(frozen=True, slots=True)
class SampleView:
    """One sample, as the student learned it."""

    sample_id: str
    category: str
    image: Image.Image | None
    text: tuple[tuple[str, bool], ...]
    """The whole conversation in pieces, each with whether it is supervised; an image's tokens stand as their number."""
    tokens: tuple[TokenView, ...]
    channels: tuple[ChannelView, ...]
    """The cross-entropy first."""
    objective: float
    teacher_entropy: float | None
    student_entropy: float
    """Both in nats, means over the tokens."""

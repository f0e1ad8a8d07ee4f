"""What stage one asks of a teacher, whatever runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from betakd_cache import FeatureLayout, TeacherRecord, TokenRule
from betakd_stages.encoding import EncodedSample, Encoder
from betakd_stages.settings.teacher import GenerationSettings


@dataclass(frozen=True, slots=True)
class Scored:
    """What a teacher made of a batch: records, and for samples without one the reason."""

    records: list[TeacherRecord]
    rejected: dict[str, str]


class Teacher(Protocol):
    """Scores samples teacher-forced: what it gives is fixed by its settings and the same for every sample."""

    @property
    def encoder(self) -> Encoder:
        """What turns samples into what it scores."""

    @property
    def token_rule(self) -> TokenRule:
        """Which entries of a token it gives, and the tail at which temperatures."""

    @property
    def vocabulary_size(self) -> int:
        """The tokenizer's real size."""

    @property
    def feature_sizes(self) -> Mapping[str, int]:
        """D by name."""

    @property
    def feature_layouts(self) -> Mapping[str, FeatureLayout]:
        """The layouts of the features that are not pooled, by name."""

    @property
    def knows_logits(self) -> bool:
        """Whether it gives the tail's mean energies and the moments of its logits, which log probabilities lack."""

    @property
    def batches_itself(self) -> bool:
        """Whether it wants as many samples at once as there are, and makes its own batches of them."""

    def identity(self) -> dict[str, Any]:
        """What the cache must remember: the teacher's weights and how they were run, and its encoder's identity."""

    def score(self, encoded: Sequence[EncodedSample]) -> Scored:
        """The records of these samples, and the reasons of those that have none; no sample harms another."""

    def write(
        self,
        prompts: Sequence[EncodedSample],
        keys: Sequence[str],
        limits: Sequence[int],
        generation: GenerationSettings,
    ) -> Sequence[list[int] | str]:
        """The ids of an answer behind each prompt, up to and with the first end token, at least one, at most its limit;
        or a text that says why there is none.

        No id is a control token or beyond the tokenizer. Equal keys and prompts give equal ids, in any batch.
        """

    def close(self) -> None:
        """Give back memory and processes."""

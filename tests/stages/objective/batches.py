"""Small batches: Zipf-like teacher and random student logits in float64, and what is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from betakd_stages.statistics import Head, Needs, StudentStatistics, student_statistics
from betakd_stages.targets import TeacherTargets

NUM_TOKENS, VOCABULARY, WIDTH = 6, 40, 12


@dataclass(frozen=True, slots=True)
class Batch:
    """Teacher logits `[N, V]`, hidden states `[N, D]` and a head `[V, D]`, all float64, and labels `[N]`."""

    teacher_logits: Tensor
    hidden: Tensor
    weight: Tensor
    gold_ids: Tensor

    @property
    def student_logits(self) -> NDArray[np.float64]:
        """`[N, V]`."""
        return (self.hidden @ self.weight.T).detach().numpy()

    def targets(self, temperatures: Sequence[float] = (1.0,), **settings: object) -> TeacherTargets:
        """The targets of the teacher's logits."""
        return TeacherTargets.from_logits(
            self.teacher_logits,
            self.gold_ids,
            temperatures=temperatures,
            **settings,  # type: ignore[arg-type]
        )

    def statistics(self, targets: TeacherTargets, needs: Needs | None = None) -> StudentStatistics:
        """The student's statistics, through the real operation."""
        return student_statistics(self.hidden, Head(self.weight), targets, needs)


def kept_ids(targets: TeacherTargets, token: int) -> NDArray[np.int64]:
    """The ids kept of one token, without padding."""
    return targets.ids[token][targets.kept[token]].numpy()


def make_batch(seed: int, num_tokens: int = NUM_TOKENS, scale: float = 1.0) -> Batch:
    """A batch whose teacher is Zipf-like in a random order per token and whose student is random."""
    generator = np.random.default_rng(seed)
    zipf = -1.5 * np.log(np.arange(1, VOCABULARY + 1))
    teacher = np.stack([generator.permutation(zipf) for _ in range(num_tokens)]) * scale
    teacher += generator.normal(size=teacher.shape) * 0.3
    return Batch(
        teacher_logits=torch.tensor(teacher + 3.0),
        hidden=torch.tensor(generator.normal(size=(num_tokens, WIDTH)) * scale),
        weight=torch.tensor(generator.normal(size=(VOCABULARY, WIDTH)) * 0.5),
        gold_ids=torch.tensor(generator.integers(0, VOCABULARY, num_tokens)),
    )

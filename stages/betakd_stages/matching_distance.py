"""How far two models' log-probabilities are apart, each set taken as a whole: the paper's matching distance.

Logits mean the same when a constant is added to all of a token's, and a cache holds them without that constant. Less
their logsumexp over the whole vocabulary they have none left: that is what can be compared, in nats. No torch in here:
reports read it too. M kept entries of all tokens together.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class MatchingDistance:
    """Of the teacher's and the student's log-probabilities of the same entries, in nats."""

    teacher_mean: float
    student_mean: float
    wasserstein_1: float
    """Between the two sets as wholes, as are the means, whichever entry a number belongs to."""

    @property
    def difference_of_means(self) -> float:
        """The student's minus the teacher's. Source: paper, figure 5, whose matching distance is its size."""
        return self.student_mean - self.teacher_mean


def matching_distance(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> MatchingDistance:
    """The distance between two models' log-probabilities of the same entries `[M]`."""
    # Wasserstein-1 of two sets of one size is the mean distance between those of equal rank.
    wasserstein_1 = np.abs(np.sort(teacher) - np.sort(student)).mean()
    return MatchingDistance(float(teacher.mean()), float(student.mean()), float(wasserstein_1))

"""Mean and deviation of a feature over a whole cache, streamed in float64 and mergeable in any order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """The count of samples that have a feature, its mean `[D]` and population deviation `[D]`, float64."""

    count: int
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @staticmethod
    def of(features: NDArray[Any]) -> "FeatureStatistics":
        """The statistics of the vectors of `[S, D]`, or of `[S, P, D]` over samples and places; S may be 0."""
        size = features.shape[-1]
        if len(features) == 0:
            return FeatureStatistics(0, np.zeros(size), np.zeros(size))
        wide = features.astype(np.float64).reshape(-1, size)
        return FeatureStatistics(len(features), wide.mean(axis=0), wide.std(axis=0))

    def merged(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both sets together, of one number of places.

        Source: Chan, Golub and LeVeque (1979), the pairwise update.
        """
        count = self.count + other.count
        if count == 0:
            return self
        share = other.count / count
        step = other.mean - self.mean
        variance = (1 - share) * self.deviation**2 + share * other.deviation**2 + share * (1 - share) * step**2
        return FeatureStatistics(count, self.mean + share * step, np.sqrt(variance))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; Python's shortest float text is exact."""
        return {"count": self.count, "mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "FeatureStatistics":
        """The statistics that `to_json` described."""
        return FeatureStatistics(fields["count"], np.array(fields["mean"]), np.array(fields["deviation"]))

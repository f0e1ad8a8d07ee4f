"""Where the teacher is sure and where it is not: figures of a run apart by the quartiles of the teacher's entropy.

The borders are those of the run's own records in the cache, so that all rows of a run, and all runs on the same samples
of a cache, mean the same by a quartile.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from betakd_cache import TeacherCache

SHARES = (0.25, 0.5, 0.75)
ALIKE_NATS = 1e-4
"""Entropies that differ by less are on one side of a border, whatever rounding does to them."""

logger = logging.getLogger(__name__)


def entropy_borders(cache: TeacherCache, indices: NDArray[np.int64]) -> tuple[float, ...]:
    """The three borders between the quartiles of the teacher's entropy over the samples of these indices `[S]`.

    In nats, of each sample's mean over its tokens as the cache's rows have it; no array is read. A border lies in the
    middle between two samples, behind those that are alike, and is infinite where no sample is above.
    """
    entropy = np.sort(cache.rows(["entropy"])["entropy"].to_numpy()[indices])
    last_below = [entropy[math.ceil(share * len(entropy)) - 1] for share in SHARES]
    first_above = [entropy[entropy > below + ALIKE_NATS][:1] for below in last_below]
    borders = tuple(
        float((below + above[0]) / 2) if len(above) else math.inf
        for below, above in zip(last_below, first_above, strict=True)
    )
    logger.info("quartiles of the teacher's entropy end at %.6g, %.6g and %.6g nats", *borders)
    return borders


def by_quartile(name: str, values: Tensor, entropy: Tensor, borders: Sequence[float]) -> dict[str, float | None]:
    """The means of values `[S]` in each quartile of the teacher's entropy `[S]`, under `name/quartile1` (where it is
    surest) to `name/quartile4`; None where no sample is. Nothing without borders."""
    if not borders:
        return {}
    quartile = torch.bucketize(entropy, torch.tensor(borders, dtype=entropy.dtype), right=True)
    members = [values[quartile == number] for number in range(len(borders) + 1)]
    return {
        f"{name}/quartile{number}": float(chosen.mean()) if len(chosen) else None
        for number, chosen in enumerate(members, start=1)
    }

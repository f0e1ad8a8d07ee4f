"""Which of a run's final metrics are shown where there is little room."""

import re
from collections.abc import Mapping

SPREAD = re.compile(r"/(q\d+|quartile\d)$")
"""How the names of quantiles, and of figures by quartile of the teacher's entropy, end."""


def without_spread(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics but for quantiles and quartiles, which are in result.json."""
    return {name: value for name, value in metrics.items() if not SPREAD.search(name)}

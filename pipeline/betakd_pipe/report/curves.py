"""Curves over training: which there are, and their means over seeds. Numbers only; figures.py draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.report.records import channels_in

MetricRows = Sequence[Mapping[str, Any]]
DECADE = 10.0

CROSS_ENTROPY_NOTE = "On the labels trained with, right or wrong."
ENERGY_NOTE = "Before it is multiplied by β: comparable between methods that define the energy alike."
BETA_NOTE = "Mean over the samples since the point before; the band runs from their 10th to their 90th percentile."
CORRELATION_NOTE = (
    "Positive while β grows is the sign of a collapse: the largest weights where the teacher knows least."
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One method: steps [T], the line [T] and the edges of its band [T]; NaN where a figure is undefined."""

    method: str
    steps: NDArray[np.int64]
    centre: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Panel:
    """The curves of one figure."""

    name: str
    title: str
    axis_label: str
    note: str
    curves: tuple[Curve, ...]
    logarithmic: bool
    zero_line: bool = False


def training_panels(metrics: Mapping[str, Sequence[MetricRows]]) -> list[Panel]:
    """The panels of a scenario from the rows of metrics.jsonl by method and seed; none is empty.

    Cross-entropy; then for each channel its energy, its beta and the correlation of log beta with teacher entropy.
    """
    channels = channels_in([row for runs in metrics.values() for rows in runs for row in rows])
    panels = [
        _panel("cross_entropy", "Cross-entropy on the labels", "cross-entropy, nats", CROSS_ENTROPY_NOTE, metrics)
    ]
    for channel in channels:
        panels += [
            _panel(f"energy/{channel}", f"Energy {channel}, unweighted", f"energy {channel}", ENERGY_NOTE, metrics),
            _panel(f"beta/{channel}", f"Weight β of {channel}", f"β of {channel}", BETA_NOTE, metrics, quantiles=True),
            _panel(
                f"entropy_correlation/{channel}",
                f"Correlation of log β of {channel} with the teacher’s entropy",
                "correlation over samples",
                CORRELATION_NOTE,
                metrics,
                zero_line=True,
            ),
        ]
    return [panel for panel in panels if panel.curves]


def _panel(
    name: str,
    title: str,
    axis_label: str,
    note: str,
    metrics: Mapping[str, Sequence[MetricRows]],
    *,
    quantiles: bool = False,
    zero_line: bool = False,
) -> Panel:
    curves = [_curve(method, runs, name, quantiles) for method, runs in metrics.items()]
    drawn = tuple(curve for curve in curves if np.isfinite(curve.centre).any())
    if any(len(runs) > 1 for runs in metrics.values()):
        note += " Means over seeds." if quantiles else " Mean over seeds; the band is ± one standard deviation."
    logarithmic = not zero_line and _spans_a_decade(drawn)
    return Panel(name.replace("/", "-"), title, axis_label, note, drawn, logarithmic, zero_line)


def _curve(method: str, runs: Sequence[MetricRows], name: str, quantiles: bool) -> Curve:
    """The mean over seeds at the steps that all of them logged."""
    shared = set.intersection(*({row["step"] for row in rows} for rows in runs))
    steps = sorted(shared)
    values = _values(runs, name, steps)
    centre = values.mean(axis=0)
    if quantiles:
        low, high = (_values(runs, f"{name}/{quantile}", steps).mean(axis=0) for quantile in ("q10", "q90"))
    else:
        deviation = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
        low, high = centre - deviation, centre + deviation
    return Curve(method, np.array(steps, dtype=np.int64), centre, low, high)


def _values(runs: Sequence[MetricRows], name: str, steps: Sequence[int]) -> NDArray[np.float64]:
    """[S, T]: S seeds, T steps; NaN where the figure is missing, undefined or not finite."""
    wanted = set(steps)
    values = np.array(
        [[row.get(name) for row in rows if row["step"] in wanted] for rows in runs], dtype=np.float64
    ).reshape(len(runs), len(steps))
    return np.where(np.isfinite(values), values, np.nan)


def _spans_a_decade(curves: Sequence[Curve]) -> bool:
    values = np.concatenate([curve.centre[np.isfinite(curve.centre)] for curve in curves]) if curves else np.array([])
    return bool(len(values) and values.min() > 0 and values.max() > DECADE * values.min())

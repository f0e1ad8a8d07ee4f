"""Whether confidence means anything: the table of calibration, and what its figures show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.ablation.rows import EVALUATION
from betakd_pipe.report.records import Run, Runs, read_scores
from betakd_pipe.report.tables import MISSING, Better, Cell, Line, Table, mark_best, summary_cell

COVERAGES = np.linspace(0.05, 1.0, 39)
"""Shares of the answers that are kept, the most confident ones; of fewer, a handful of answers would be the curve."""
OWN = {"expected_calibration_error": "ECE", "brier_score": "Brier", "negative_log_likelihood": "NLL"}
CREDIBLE = "credible accuracy %"
NOTE = (
    "Of each answer’s probability, against whether it is right: the expected calibration error, the Brier score, the "
    "negative log likelihood in nats, and AURC, the mean share of wrong answers among the most confident ones over all "
    "coverages; smaller is better in all of them."
)
SCALED_NOTE = " “T” is after temperature scaling, fitted on held-out questions."
DRAWN_NOTE = (
    " Where students were drawn from the posterior, the probability is the mean over them, “MAP” is that of the "
    "student alone, and the credible interval holds the drawn students’ accuracies."
)


@dataclass(frozen=True, slots=True)
class CalibrationCurves:
    """By method; all numbers 0 to 1."""

    reliability: Mapping[str, Sequence[Mapping[str, Any]]]
    """Confidence and accuracy in bins of confidence, the answers of all seeds together."""
    selective: Mapping[str, NDArray[np.float64]]
    """Accuracy at COVERAGES, the mean over seeds."""


def calibration_table(runs: Runs) -> Table | None:
    """Mean ± sample standard deviation over seeds, one line per method; None where no answer has a confidence."""
    known = _with_confidence(runs)
    if not known:
        return None
    figures = {method: [_figures(run) for run in of] for method, of in known.items()}
    names = [name for name in _headings() if any(name in each for of in figures.values() for each in of)]
    drawn = {method: [read_scores(run.row.run / EVALUATION) for run in of] for method, of in known.items()}
    has_draws = any("credible_intervals" in each for of in drawn.values() for each in of)
    lines = [
        Line(method, tuple(summary_cell([each.get(name) for each in of], 1 if "%" in name else 3) for name in names))
        for method, of in figures.items()
    ]
    better: list[Better] = ["higher" if "%" in name else "lower" for name in names]
    lines = list(mark_best(lines, better))
    if has_draws:
        lines = [Line(line.name, (*line.cells, _credible(drawn[line.name]))) for line in lines]
    has_scaled = any(name.endswith(", T") for name in names)
    note = NOTE + (SCALED_NOTE if has_scaled else "") + (DRAWN_NOTE if has_draws else "")
    return Table("calibration", ("method", *names, *([CREDIBLE] if has_draws else [])), tuple(lines), note)


def calibration_curves(runs: Runs) -> CalibrationCurves | None:
    """What the figures show of these methods; None where no answer has a confidence."""
    from betakd_stages.evaluation.metrics import reliability_table, selective_accuracies

    known = _with_confidence(runs)
    if not known:
        return None
    reliability, selective = {}, {}
    for method, of in known.items():
        answers = [_answers(run) for run in of]
        together = [np.concatenate(parts) for parts in zip(*answers, strict=True)]
        reliability[method] = reliability_table(*(values.tolist() for values in together))
        curves = [selective_accuracies(*(values.tolist() for values in each)) for each in answers]
        places = [np.ceil(COVERAGES * len(curve) - 1e-9).astype(np.int64) - 1 for curve in curves]
        selective[method] = np.mean([curve[own] for curve, own in zip(curves, places, strict=True)], axis=0)
    return CalibrationCurves(reliability, selective)


def _with_confidence(runs: Runs) -> dict[str, Sequence[Run]]:
    """The methods whose answers all have a confidence."""
    return {
        method: of
        for method, of in runs.items()
        if all(run.predictions and all(row.get("confidence") is not None for row in run.predictions) for run in of)
    }


def _answers(run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Confidences and what is right, `[Q]` each."""
    columns = [[float(row[name]) for row in run.predictions] for name in ("confidence", "correct")]
    confidences, correct = (np.array(column, dtype=np.float64) for column in columns)
    return confidences, correct


def _headings() -> list[str]:
    return [
        *("accuracy %", *OWN.values(), "AURC"),
        *(f"{title}, {kind}" for kind in ("T", "MAP") for title in OWN.values()),
    ]


def _figures(run: Run) -> dict[str, float]:
    """The numbers of one run by heading; those it has not are left out."""
    from betakd_stages.evaluation.metrics import area_under_risk_coverage, calibration_scores

    confidences, correct = (values.tolist() for values in _answers(run))
    own = calibration_scores(confidences, correct)
    scores = read_scores(run.row.run / EVALUATION)
    found = {"accuracy %": run.row.accuracy, "AURC": area_under_risk_coverage(confidences, correct)}
    for suffix, values in (("", own), (", T", scores.get("temperature_scaling")), (", MAP", scores.get("map"))):
        if values is not None:
            found |= {f"{title}{suffix}": values[name] for name, title in OWN.items()}
    return found


def _credible(scores: Sequence[Mapping[str, Any]]) -> Cell:
    """Where drawn students' accuracies begin and end, means over seeds."""
    intervals = [each["credible_intervals"]["accuracy"] for each in scores if "credible_intervals" in each]
    if len(intervals) < len(scores):
        return Cell(MISSING)
    low, high = np.mean(intervals, axis=0).tolist()
    return Cell(f"{low:.1f} to {high:.1f}", low)

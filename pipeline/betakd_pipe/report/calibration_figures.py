"""The figures of calibration: a reliability diagram, and accuracy against the share of answers that are kept."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from betakd_pipe.report.calibration import COVERAGES, CalibrationCurves
from betakd_pipe.report.drawing import INK, Drawn, finished, new_figure, settings
from betakd_pipe.report.figures import PANEL_SIZE_INCHES
from betakd_pipe.report.styles import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RELIABILITY_NOTE = (
    "Bins of confidence, the answers of all seeds together. On the diagonal confidence is the share of right answers; "
    "below it the method is surer than it should be."
)
SELECTIVE_NOTE = (
    "Accuracy of the most confident answers when the others are left to somebody else, mean over seeds. A curve that "
    "rises to the left belongs to a method that knows when it is wrong."
)


def draw_reliability(curves: CalibrationCurves, name: str, styles: Mapping[str, Style]) -> Drawn:
    """Accuracy against confidence, both in percent; `name` is unique in the page."""
    with settings():
        figure, [[axes]] = new_figure(PANEL_SIZE_INCHES)
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.7)
        for method, rows in curves.reliability.items():
            confidences, accuracies = ([100 * row[column] for row in rows] for column in ("confidence", "accuracy"))
            _draw_line(axes, confidences, accuracies, method, styles[method], marker="o")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        return finished(figure, axes, name)


def draw_selective(curves: CalibrationCurves, name: str, styles: Mapping[str, Style]) -> Drawn:
    """Accuracy against coverage, both in percent; `name` is unique in the page."""
    with settings():
        figure, [[axes]] = new_figure(PANEL_SIZE_INCHES)
        for method, accuracies in curves.selective.items():
            _draw_line(axes, 100 * COVERAGES, 100 * accuracies, method, styles[method])
        axes.set_xlim(0, 100)
        axes.set_xlabel("answers kept, the most confident first, %")
        axes.set_ylabel("accuracy of those, %")
        return finished(figure, axes, name)


def _draw_line(axes: "Axes", across: Any, up: Any, method: str, style: Style, marker: str = "") -> None:
    dashes: Any = (0, style.dashes) if style.dashes else "solid"
    axes.plot(
        across, up, color=style.colour, linestyle=dashes, linewidth=1.6, marker=marker, markersize=3.5, label=method
    )

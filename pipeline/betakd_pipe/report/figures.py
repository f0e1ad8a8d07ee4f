"""What is drawn into each kind of figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from betakd_pipe.report.categories import CategoryBars
from betakd_pipe.report.curves import Curve, Panel
from betakd_pipe.report.distances import Distributions
from betakd_pipe.report.drawing import INK, Drawn, finished, logarithmic, new_figure, settings
from betakd_pipe.report.records import TEACHER
from betakd_pipe.report.scatter import Moment, Scatter
from betakd_pipe.report.styles import MOMENT_COLOURS, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_SIZE_INCHES = (4.7, 2.9)
BARS_SIZE_INCHES = (11.0, 3.4)
TWO_SIZE_INCHES = (9.4, 2.9)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes of the types of questions."""
GROUP_WIDTH = 0.84
"""Share of a question type's room that its bars take."""


def draw_panel(panel: Panel, name: str, styles: Mapping[str, Style]) -> Drawn:
    """The curves over training; `name` is unique in the page."""
    with settings():
        figure, [[axes]] = new_figure(PANEL_SIZE_INCHES)
        if panel.zero_line:
            axes.axhline(0, color=INK, linewidth=0.7)
        floor = 0.5 * min(np.nanmin(curve.centre) for curve in panel.curves) if panel.logarithmic else -np.inf
        for curve in panel.curves:
            _draw_curve(axes, curve, styles[curve.method], floor)
        if panel.logarithmic:
            logarithmic(axes)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(panel.axis_label, parse_math=False)
        axes.margins(x=0.01)
        return finished(figure, axes, name)


def draw_category_bars(bars: CategoryBars, name: str, styles: Mapping[str, Style]) -> Drawn:
    """Grouped bars, one group per question type; `name` is unique in the page."""
    with settings():
        figure, [[axes]] = new_figure(BARS_SIZE_INCHES)
        places = np.arange(len(bars.categories), dtype=np.float64)
        width = GROUP_WIDTH / len(bars.means)
        for index, method in enumerate(bars.means):
            style = styles[method]
            axes.bar(
                places + (index + 0.5) * width - GROUP_WIDTH / 2,
                bars.means[method],
                0.9 * width,
                yerr=bars.deviations[method],
                error_kw={"elinewidth": 0.8, "ecolor": INK},
                color=style.colour,
                hatch=style.hatch,
                edgecolor="white",
                linewidth=0,
                label=method,
            )
        if bars.teacher is not None:
            left, right = places - GROUP_WIDTH / 2, places + GROUP_WIDTH / 2
            axes.hlines(bars.teacher, left, right, color=INK, linewidth=1.3, label=TEACHER)
        axes.set_xticks(places, bars.categories, parse_math=False)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0, 100)
        axes.set_xlim(-0.5, len(places) - 0.5)
        return finished(figure, axes, name)


def draw_distributions(moments: Sequence[Distributions], name: str, styles: Mapping[str, Style]) -> Drawn:
    """The teacher's log-probabilities as an area, the students' as lines, early and late side by side."""
    with settings():
        figure, [row] = new_figure(TWO_SIZE_INCHES, num_columns=len(moments), share_y="row")
        filled = [each > 0 for moment in moments for each in (moment.teacher, *moment.students.values())]
        lowest = moments[0].edges[int(np.flatnonzero(np.any(filled, axis=0))[0])]
        for axes, moment in zip(row, moments, strict=True):
            axes.stairs(moment.teacher, moment.edges, fill=True, color=INK, alpha=0.18, label=TEACHER)
            for method, shares in moment.students.items():
                style = styles[method]
                dashes: Any = (0, style.dashes) if style.dashes else "solid"
                axes.stairs(shares, moment.edges, color=style.colour, linestyle=dashes, linewidth=1.4, label=method)
            axes.set_xlim(lowest, 0)
            axes.set_title(moment.moment, loc="left")
            axes.set_xlabel("log-probability of a kept entry, nats")
        row[0].set_ylabel("share of the entries")
        return finished(figure, row[0], name)


def draw_scatters(scatters: Sequence[Scatter], name: str) -> Drawn:
    """Each probed sample's weight against its entropies, a row per method; colours are moments of the training, shapes
    the types of questions."""
    with settings():
        size = (TWO_SIZE_INCHES[0], TWO_SIZE_INCHES[1] * len(scatters))
        figure, grid = new_figure(size, len(scatters), 2, share_y="row")
        found = {str(kind) for scatter in scatters for moment in scatter.moments for kind in moment.kinds}
        marks = dict(zip(sorted(found), MARKS, strict=False))
        for row, scatter in zip(grid, scatters, strict=True):
            for axes, whose in zip(row, ("student", "teacher"), strict=True):
                for moment, colour in zip(scatter.moments, MOMENT_COLOURS, strict=False):
                    _draw_moment(axes, moment, whose, colour, marks)
                axes.set_xlabel(f"{whose}’s entropy, nats")
            row[0].set_title(scatter.title, loc="left", parse_math=False)
            row[0].set_ylabel("β")
            if scatter.is_logarithmic:
                logarithmic(row[0])
        for moment, colour in zip(scatters[0].moments, MOMENT_COLOURS, strict=False):
            grid[0][0].scatter([], [], s=11, color=colour, label=f"step {moment.step}")
        for kind, mark in marks.items() if len(marks) > 1 else ():
            grid[0][0].scatter([], [], s=16, color=INK, marker=mark, label=kind or "type not known")
        return finished(figure, grid[0][0], name, legend_in_page=True)


def _draw_moment(axes: "Axes", moment: Moment, whose: str, colour: str, marks: Mapping[str, str]) -> None:
    entropy = moment.student_entropy if whose == "student" else moment.teacher_entropy
    for kind, mark in marks.items():
        own = moment.kinds == kind
        axes.scatter(entropy[own], moment.betas[own], s=13, color=colour, alpha=0.75, linewidths=0, marker=mark)


def _draw_curve(axes: "Axes", curve: Curve, style: Style, floor: float) -> None:
    line: Any = (0, style.dashes) if style.dashes else "solid"
    low, high = np.maximum(curve.low, floor), np.maximum(curve.high, floor)
    axes.fill_between(curve.steps, low, high, color=style.colour, alpha=0.14, linewidth=0)
    axes.plot(curve.steps, curve.centre, color=style.colour, linestyle=line, linewidth=1.6, label=curve.method)

"""Figures as inline SVG, which follows the page's colours, and as PNG, which stands alone; without pyplot."""

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from betakd_pipe.report.curves import Curve, Panel
from betakd_pipe.report.records import TEACHER
from betakd_pipe.report.styles import Style
from betakd_pipe.report.tables import CategoryBars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#23272e"
GRID = "#dde1e7"
PNG_DPI = 160
PANEL_SIZE_INCHES = (4.7, 2.9)
BARS_SIZE_INCHES = (11.0, 3.4)
LEGEND_WIDTH_INCHES = 2.0
GROUP_WIDTH = 0.84
"""Share of a question type's room that its bars take."""

# In the page the axes take the colours of the text around them, which follow the reader's light or dark scheme.
PAGE_COLOURS = {INK: "currentColor", GRID: "var(--line)"}


def draw_panel(panel: Panel, name: str, styles: Mapping[str, Style]) -> tuple[str, bytes]:
    """The curves over training as SVG and as PNG with a legend; `name` is unique in the page."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with _settings():
        figure, axes = _new_figure(PANEL_SIZE_INCHES)
        if panel.zero_line:
            axes.axhline(0, color=INK, linewidth=0.7)
        floor = 0.5 * min(np.nanmin(curve.centre) for curve in panel.curves) if panel.logarithmic else -np.inf
        for curve in panel.curves:
            _draw_curve(axes, curve, styles[curve.method], floor)
        if panel.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(panel.axis_label, parse_math=False)
        axes.margins(x=0.01)
        return _inline_svg(figure, name), _png(figure, axes)


def draw_category_bars(bars: CategoryBars, name: str, styles: Mapping[str, Style]) -> tuple[str, bytes]:
    """Grouped bars, one group per question type, as SVG and as PNG with a legend; `name` is unique in the page."""
    with _settings():
        figure, axes = _new_figure(BARS_SIZE_INCHES)
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
        return _inline_svg(figure, name), _png(figure, axes)


def write_png(path: Path, content: bytes) -> None:
    """Write a figure beside the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _settings() -> AbstractContextManager[None]:
    """matplotlib's settings while a figure is drawn; the fixed salt makes the same figure the same bytes."""
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "betakd-pipe",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.unicode_minus": True,
            "xtick.color": INK,
            "ytick.color": INK,
            "hatch.linewidth": 0.8,
        }
    )


def _new_figure(size_inches: tuple[float, float]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_inches, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_curve(axes: "Axes", curve: Curve, style: Style, floor: float) -> None:
    line: Any = (0, style.dashes) if style.dashes else "solid"
    low, high = np.maximum(curve.low, floor), np.maximum(curve.high, floor)
    axes.fill_between(curve.steps, low, high, color=style.colour, alpha=0.14, linewidth=0)
    axes.plot(curve.steps, curve.centre, color=style.colour, linestyle=line, linewidth=1.6, label=curve.method)


def _inline_svg(figure: "Figure", name: str) -> str:
    """The figure as an `<svg>` element that scales with the page and names no address of a namespace."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", svg)  # HTML knows SVG without its namespaces
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = _own_ids(svg, name)
    for colour, page_colour in PAGE_COLOURS.items():
        svg = svg.replace(colour, page_colour)
    return svg


def _own_ids(svg: str, name: str) -> str:
    """The SVG with ids of its own: those that something refers to begin with `name`, the others are taken away."""
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)


def _png(figure: "Figure", axes: "Axes") -> bytes:
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + LEGEND_WIDTH_INCHES, height)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return content.getvalue()

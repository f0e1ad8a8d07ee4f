"""How a figure leaves matplotlib: inline SVG that follows the page's colours, and SVG and PNG that stand alone.

Without pyplot; the same figure gives the same bytes.
"""

import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from betakd_stages.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#23272e"
GRID = "#dde1e7"
PNG_DPI = 160
LEGEND_WIDTH_INCHES = 2.2
POINTS_PER_INCH = 72
LEGEND = "legend"
BACKGROUND = "fill: #ffffff"
NAMESPACES = {"": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}

# In the page the axes take the colours of the text around them, which follow the reader's light or dark scheme.
PAGE_COLOURS = {INK: "currentColor", GRID: "var(--line)"}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure: an `<svg>` element for the page, and two files of their own, which have a legend."""

    inline_svg: str
    svg: str
    png: bytes

    def write(self, folder: Path, name: str) -> None:
        """Write `folder`/NAME.svg and NAME.png."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.svg", self.svg)
        (folder / f"{name}.png").write_bytes(self.png)


def settings() -> AbstractContextManager[None]:
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
            "axes.titlesize": 9,
            "axes.unicode_minus": True,
            "xtick.color": INK,
            "ytick.color": INK,
            "hatch.linewidth": 0.8,
        }
    )


def new_figure(
    size_inches: tuple[float, float],
    num_rows: int = 1,
    num_columns: int = 1,
    *,
    share_y: Literal["none", "row"] = "none",
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure whose axes, by row and column, fill this size, with room for a legend to the right of it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width, height = size_inches
    share = width / (width + LEGEND_WIDTH_INCHES)
    layout = ConstrainedLayoutEngine(rect=(0, 0, share, 1))
    figure = Figure(figsize=(width + LEGEND_WIDTH_INCHES, height), layout=layout)
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=share_y)
    for axes in grid.flat:
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, [list(row) for row in grid]


def logarithmic(axes: "Axes") -> None:
    """Give the axes a logarithmic y with numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def finished(figure: "Figure", axes: "Axes", name: str, *, legend_in_page: bool = False) -> Drawn:
    """The figure with the legend of these axes beside it; in the page only where the page has none of its own.

    `name` is unique in the page.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it stays as it is now: a layout takes longer than a drawing
    width = figure.get_figwidth()
    place = (1 - LEGEND_WIDTH_INCHES / width, 1)
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=place, frameon=False)
    legend.set_gid(LEGEND)
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    alone = svg.getvalue()
    width_points = (width if legend_in_page else width - LEGEND_WIDTH_INCHES) * POINTS_PER_INCH
    return Drawn(_for_page(_cut(alone, width_points, legend=legend_in_page), name), alone, png.getvalue())


def _cut(svg: str, width_points: float, *, legend: bool) -> str:
    """The SVG cut to this width and without background, with its legend or without."""
    for prefix, address in NAMESPACES.items():
        ElementTree.register_namespace(prefix, address)
    tree = ElementTree.fromstring(svg)
    parents = {child: parent for parent in tree.iter() for child in parent}
    for element in [*tree.iter()]:
        if element.get("id") == LEGEND and not legend:
            parents[element].remove(element)
        elif element.get("style") == BACKGROUND:
            element.set("style", "fill: none")
    tree.set("viewBox", f"0 0 {width_points:g} {tree.attrib['viewBox'].split()[-1]}")
    return ElementTree.tostring(tree, encoding="unicode")


def _for_page(svg: str, name: str) -> str:
    """The figure as an `<svg>` element that scales with the page and names no address of a namespace."""
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

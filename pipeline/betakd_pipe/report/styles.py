"""How a method looks in every figure, table and card: a colour and a line style, safe for the colour-blind."""

from collections.abc import Iterable
from dataclasses import dataclass

# Okabe and Ito 2008, without black (the teacher's and the axes') and yellow (too light for a line on white).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[tuple[float, ...], ...] = ((), (3.5, 1.5), (1.0, 1.2), (5.0, 1.5, 1.0, 1.5))
# From the first step to the last; of like lightness, so that they show on white and on black.
MOMENT_COLOURS = ("#8b93c7", "#4a90d9", "#2aa198", "#c98a1b", "#d6453d")
HATCHES = ("", "////", "....", "xxxx")


@dataclass(frozen=True, slots=True)
class Style:
    """Colour as #rrggbb; dash lengths in line widths, none for a solid line; matplotlib's hatch for bars."""

    colour: str
    dashes: tuple[float, ...]
    hatch: str


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method in the order given: first the colours, then the same colours dashed, and so on."""
    styles = {}
    for index, method in enumerate(dict.fromkeys(methods)):
        cycle = index // len(COLOURS) % len(DASHES)
        styles[method] = Style(COLOURS[index % len(COLOURS)], DASHES[cycle], HATCHES[cycle])
    return styles

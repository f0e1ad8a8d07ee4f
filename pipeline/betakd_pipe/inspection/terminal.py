"""Samples on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from betakd_pipe.inspection.figures import channel_rows, entropy_line, guess_lines, token_figures

if TYPE_CHECKING:
    from betakd_stages.inspection import SampleView

IMAGE_COLUMNS = 32
UPPER_HALF = "▀"


def print_samples(views: "Sequence[SampleView]", console: Console | None = None) -> None:
    """Print each sample: image, text, tokens, weights."""
    console = console or Console()
    for view in views:
        _print_sample(view, console)


def _print_sample(view: "SampleView", console: Console) -> None:
    category = f" ({view.category})" if view.category else ""
    console.rule(Text(f"{view.sample_id}{category}"), align="left")
    if view.image is not None:
        if console.color_system == "truecolor":
            console.print(image_text(view.image))
        console.print(Text(f"image: {view.image.width} x {view.image.height} pixels", "dim"))
    text = Text()
    for piece, supervised in view.text:
        text.append(piece, "bold green" if supervised else "")
    console.print(text)
    tokens = Table(box=box.SIMPLE, padding=(0, 2, 0, 0))
    for title in ("label", "", "teacher", "student"):
        tokens.add_column(title, vertical="top", overflow="fold")
    for token in view.tokens:
        tokens.add_row(
            Text(token.label, "bold green"),
            _pairs(token_figures(token)),
            _pairs(guess_lines(token.teacher, token.teacher_rest)),
            _pairs(guess_lines(token.student, token.student_rest)),
        )
        tokens.add_section()
    console.print(tokens)
    channels = Table(box=box.SIMPLE, padding=(0, 2, 0, 0))
    channels.add_column("term", overflow="fold")
    for title in ("mean over tokens", "weight (beta)", "product"):
        channels.add_column(title, justify="right")
    for row in channel_rows(view):
        channels.add_row(*map(Text, row))
    console.print(channels)
    console.print(Text(entropy_line(view)))


def image_text(image: Image.Image) -> Text:
    """The image in coloured half blocks, two pixels to a character, at most 32 columns wide."""
    width = min(IMAGE_COLUMNS, image.width)
    height = max(2, round(image.height * width / image.width / 2) * 2)
    pixels = image.convert("RGB").resize((width, height), Image.Resampling.BOX).load()
    assert pixels is not None, "an image that was just made has pixels"
    lines = []
    for row in range(0, height, 2):
        line = Text()
        for column in range(width):
            upper, lower = (pixels[column, row + below] for below in (0, 1))
            line.append(UPPER_HALF, f"{_hex(upper)} on {_hex(lower)}")
        lines.append(line)
    return Text("\n").join(lines)


def _hex(colour: object) -> str:
    assert isinstance(colour, tuple), "RGB"
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, figure in pairs:
        table.add_row(Text(name), Text(figure))
    return table

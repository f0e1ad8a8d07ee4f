"""Samples as one self-contained HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from betakd_pipe.inspection.figures import channel_rows, entropy_line, guess_lines, token_figures
from betakd_pipe.report.samples import data_uri
from betakd_stages.files import write_atomically

if TYPE_CHECKING:
    from betakd_stages.inspection import SampleView


def write_page(path: Path, title: str, views: "Sequence[SampleView]") -> None:
    """Write the page of these samples; the same samples give the same bytes."""
    environment = Environment(
        loader=PackageLoader("betakd_pipe.inspection", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = [None if view.image is None else data_uri(view.image) for view in views]
    page = environment.get_template("page.html.j2").render(
        title=title,
        samples=list(zip(views, images, strict=True)),
        guess_lines=guess_lines,
        token_figures=token_figures,
        channel_rows=channel_rows,
        entropy_line=entropy_line,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)

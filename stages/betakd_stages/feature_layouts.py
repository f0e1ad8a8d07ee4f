"""What stage one can store of a sample beside the logits, by the words users write; free of torch for `--help`.

vision             the projector's output, averaged over the image's tokens
vision:grid:4x4    averaged over each cell of a grid of 4 rows and 4 columns, which any student's image fits
vision:tokens      every visual token; a student needs as many as the teacher
prompt             the mean last hidden state over the tokens before the first answer
"""

from betakd_stages.errors import ConfigError

POOLED, TOKENS, GRID = "pooled", "tokens", "grid"
CHOICES = "vision, vision:grid:ROWSxCOLUMNS, vision:tokens or prompt"


def parse_feature(text: str) -> tuple[str, str]:
    """(name, layout) of a feature such as `vision:grid:4x4`. Raises ConfigError for one that does not exist."""
    name, _, layout = text.partition(":")
    layout = layout or POOLED
    if name not in ("vision", "prompt") or (name == "prompt" and layout != POOLED):
        raise ConfigError(f"unknown feature {text!r}: choose {CHOICES}")
    if layout not in (POOLED, TOKENS):
        grid_cells(layout)
    return name, layout


def grid_cells(layout: str) -> tuple[int, int]:
    """(rows, columns) of `grid:4x4`. Raises ConfigError for anything else."""
    kind, _, size = layout.partition(":")
    rows, _, columns = size.partition("x")
    if kind != GRID or not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise ConfigError(f"unknown feature layout {layout!r}: choose pooled, tokens, or a grid such as grid:4x4")
    return int(rows), int(columns)

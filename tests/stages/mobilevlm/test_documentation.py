"""The table of prompts in docs/models.md says what the encoder does."""

from pathlib import Path

import pytest
from tests.stages.mobilevlm.published import TINY_STUDENT, write_published

from betakd_stages.data.sample import Turn
from betakd_stages.models.loading import load_encoder

DOCUMENT = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TURNS = (Turn("What is it?", "A cat."), Turn("Colour?", "Black."))
SAMPLES = {
    "image, one turn": (TURNS[:1], True),
    "image, two turns": (TURNS, True),
    "no image": (TURNS[:1], False),
    "image, one turn; the question is left out": (TURNS[:1], True),
}
TABLE = DOCUMENT.partition("<!-- prompts:")[2].partition("<!-- end of prompts")[0]
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.splitlines() if line.startswith("|")][2:]


def test_the_system_text_is_in_the_document() -> None:
    assert f'"{SYSTEM}"' in " ".join(DOCUMENT.split())


def test_the_table_has_a_row_for_every_kind_of_sample() -> None:
    assert [row[1] for row in ROWS] == list(SAMPLES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_row_of_the_table_is_what_the_encoder_renders(tmp_path: Path, row: list[str]) -> None:
    version, kind, *columns = row
    turns, has_image = SAMPLES[kind]
    encoder = load_encoder(write_published(tmp_path / "model", TINY_STUDENT, prompt_version=version))
    segments = encoder.segments(turns, has_image)
    for supervised, column in zip((False, True), columns, strict=True):
        texts = [text for text, is_supervised in segments if is_supervised is supervised]
        shown = [text.replace(f"{SYSTEM} ", "S ").replace("\n", "\\n") for text in texts]
        assert column == " then ".join(f"`{text}`" for text in shown)

"""The tables in docs/models.md say what the encoders do, and how large LLaVA-Qwen is."""

from pathlib import Path

import pytest
from tests.stages.models.test_building import PUBLISHED, PUBLISHED_PARAMETERS, PUBLISHED_TENSORS
from tests.stages.models.world import TURNS, folder_of, sample
from transformers import AutoModelForImageTextToText

from betakd_stages.encoding import IGNORED
from betakd_stages.models.loading import load_encoder

DOCUMENT = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
FAMILIES = {"llava": "llava (CLIP)"}
SAMPLES = {"image, two turns": sample(TURNS), "no image": sample(TURNS[:1], None)}
TOWER_PARAMETERS = 303_507_456


def section(name: str) -> list[str]:
    """The lines between `<!-- name` and `<!-- end of name`."""
    return DOCUMENT.partition(f"<!-- {name}")[2].partition(f"<!-- end of {name}")[0].splitlines()[1:]


def cells(line: str) -> list[str]:
    return [cell.replace("\\|", "|").strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]


ROWS = [[cell.replace("\0", "|") for cell in cells(line)] for line in section("families")[2:]]


def test_the_table_has_two_rows_for_every_family_read_by_its_own_processor_and_for_llava() -> None:
    tested = [line.split("`")[1] for line in DOCUMENT.splitlines() if line.startswith("| `") and "all of it" in line]
    assert {"llava", "mobilevlm", "qwen2_5_vl", "smolvlm"} == set(tested)
    families = {row[0] for row in ROWS}
    assert families == {"llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "llava_onevision", "internvl"}
    assert [row[1] for row in ROWS] == list(SAMPLES) * len(families)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_row_of_the_table_is_what_the_encoder_makes(row: list[str]) -> None:
    family, kind, prompts, answers = row
    encoder, one = load_encoder(folder_of(FAMILIES.get(family, family))), SAMPLES[kind]
    segments = encoder.segments(one.turns, one.image is not None)
    shown = [text.replace("\n", "\\n") for text, is_supervised in segments if not is_supervised]
    assert prompts == " then ".join(f"`{text}`" for text in shown)
    encoded = encoder.encode(one)
    supervised: list[list[int]] = []
    for place, id in enumerate(encoded.labels.tolist()):
        if id == IGNORED:
            continue
        if encoded.labels[place - 1] == IGNORED:
            supervised.append([])
        supervised[-1].append(id)
    assert answers == " then ".join(f"`{encoder.tokenizer.decode(ids)}`" for ids in supervised)


def test_the_template_for_llava_1_5_gives_the_prompts_it_was_trained_with() -> None:
    (template,) = (line.strip() for line in section("llava-1.5"))
    encoder = load_encoder(folder_of("llava (CLIP)"))
    encoder.tokenizer.chat_template = template.replace("<image>", encoder.image_token)
    segments = encoder.segments(TURNS, True)
    assert [text.replace(encoder.image_token, "<image>") for text, _ in segments] == [
        "USER: <image>\nWhat is it? ASSISTANT:",
        " A cat.<|im_end|>",
        "USER: Colour? ASSISTANT:",
        " Black.<|im_end|>",
    ]
    assert encoder.tokenizer.decode(encoder.answer_ids(sample())) == " A cat.<|im_end|> Black.<|im_end|>"


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_table_of_sizes_is_right(size: str) -> None:
    (line,) = (line for line in DOCUMENT.splitlines() if line.startswith(f"| Qwen2.5-{size} |"))
    width = PUBLISHED[size]["hidden_size"]
    projector = width * 1024 + width + width * width + width
    total = PUBLISHED_PARAMETERS[size] + projector + TOWER_PARAMETERS
    numbers = (PUBLISHED_TENSORS[size], PUBLISHED_PARAMETERS[size], projector, total)
    assert cells(line)[1:] == [f"{number:,}" for number in numbers]


def test_every_family_named_is_one_of_transformers() -> None:
    known = {config.model_type for config in AutoModelForImageTextToText._model_mapping}
    assert {row[0] for row in ROWS} <= known

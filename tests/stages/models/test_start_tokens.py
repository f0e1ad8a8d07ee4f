"""A tokenizer that puts a start token in front of every text, as Llama's does, and templates that do it themselves."""

import json
import shutil
from pathlib import Path

import pytest
from tests.stages.models.world import SAMPLES, TURNS, folder_of, sample
from transformers import AutoProcessor, AutoTokenizer

from betakd_stages.models.loading import load_encoder

VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image_pad|>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
START = "<|endoftext|>"


def with_start_token(family: str, folder: Path, template: str) -> Path:
    """A copy of a family's folder whose tokenizer adds a start token, with another template."""
    copy = Path(shutil.copytree(folder_of(family), folder / "model"))
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    id = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == START)
    begin, text = {"SpecialToken": {"id": START, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {START: {"id": START, "ids": [id], "tokens": [START]}},
    }
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": START}), encoding="utf-8")
    (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    return copy


@pytest.mark.parametrize("family", ["llava (CLIP)", "qwen2_5_vl"])
@pytest.mark.parametrize("lead", ["", "{{ bos_token }}"])
def test_there_is_exactly_one_start_token(family: str, lead: str, tmp_path: Path) -> None:
    folder = with_start_token(family, tmp_path, lead + VICUNA)
    encoder = load_encoder(folder)
    start = encoder.tokenizer.bos_token_id
    assert AutoTokenizer.from_pretrained(folder)("A")["input_ids"][0] == start
    for one in SAMPLES:
        encoded = encoder.encode(one)
        assert encoded.input_ids[0] == start
        assert int((encoded.input_ids == start).sum()) == 1
        assert len(encoded.labels) == len(encoded.input_ids)
        assert all(len(values) == len(encoded.input_ids) for values in encoded.token_inputs.values())
        answers = encoder.tokenizer.decode(encoded.answer_ids)
        assert answers == "".join(f" {turn.answer}<|im_end|>" for turn in one.turns)


def test_ids_are_those_of_llavas_processor_as_it_is_called(tmp_path: Path) -> None:
    folder = with_start_token("llava (CLIP)", tmp_path, VICUNA)
    encoder, processor = load_encoder(folder), AutoProcessor.from_pretrained(folder, backend="pil")
    one = sample(TURNS)
    assert one.image is not None
    text = "".join(piece for piece, _ in encoder.segments(one.turns, True))
    expected = processor(images=[one.image.load().pixels], text=[text], return_tensors="pt")["input_ids"][0]
    assert encoder.encode(one).input_ids.tolist() == expected.tolist()

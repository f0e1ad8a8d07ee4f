"""Llama's tokenizer from SentencePiece's file, against what SentencePiece itself makes of the same texts."""

import json
import shutil
from pathlib import Path

import pytest
from tests.stages.mobilevlm.published import VECTORS
from tokenizers import Tokenizer, models
from transformers import LlamaTokenizer

from betakd_stages.errors import ModelError
from betakd_stages.models.mobilevlm.tokenizer import load_tokenizer, read_sentencepiece

GOLDEN = json.loads((VECTORS / "llama_style.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(VECTORS / "llama_style.model", tmp_path / "tokenizer.model")
    return tmp_path


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes, up to 127 of them."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_pieces_come_in_sentencepieces_order(folder: Path) -> None:
    vocabulary, _ = read_sentencepiece(folder / "tokenizer.model")
    assert list(vocabulary) == GOLDEN["pieces"]
    assert list(vocabulary.values()) == list(range(420))


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: repr(case["text"]))
def test_texts_become_sentencepieces_ids_and_back(folder: Path, case: dict) -> None:
    tokenizer = load_tokenizer(folder, "template")
    assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["text"]


def test_control_pieces_are_never_merged_from_text(folder: Path) -> None:
    _, merges = read_sentencepiece(folder / "tokenizer.model")
    assert merges
    assert not {"<unk>", "<s>", "</s>", "<0x0A>"} & {left + right for left, right in merges}


def test_padding_is_the_end_token_whatever_the_folder_says(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<unk>"}))
    tokenizer = load_tokenizer(folder, "template")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


@pytest.mark.parametrize(("settings", "legacy"), [({}, True), ({"legacy": True}, True), ({"legacy": False}, False)])
def test_saved_as_json_the_tokenizer_stays_the_same(folder: Path, settings: dict, legacy: bool) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    original = load_tokenizer(folder, "template")
    original.save_pretrained(folder / "saved")
    assert not (folder / "saved" / "tokenizer.model").exists()
    again = load_tokenizer(folder / "saved", "template")
    assert again.get_vocab() == original.get_vocab()
    for text in ("A cat.</s>USER: Colour?", "naïve ☃", "\nWhat"):
        ids = again(text, add_special_tokens=False)["input_ids"]
        assert ids == original(text, add_special_tokens=False)["input_ids"]
    behind_end = again.tokenize("A cat.</s>USER:")
    assert behind_end[behind_end.index("</s>") + 1].startswith("▁") == legacy


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds neither tokenizer.json nor tokenizer.model: copy one beside"):
        load_tokenizer(tmp_path, "template")


def test_another_chat_template_in_the_folder_is_refused(folder: Path) -> None:
    load_tokenizer(folder, "one").save_pretrained(folder)
    with pytest.raises(ModelError, match="chat template that is not MobileVLM V2's: prompts follow prompt_version"):
        load_tokenizer(folder, "another")


def test_a_tokenizer_without_byte_fallback_is_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.BPE({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, [], unk_token="<unk>"))
    LlamaTokenizer(tokenizer_object=words, vocab=words.get_vocab()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks the byte <0x00>: unknown text would become <unk>, which stands for"):
        load_tokenizer(tmp_path, "template")


def test_a_sentencepiece_model_of_another_type_is_refused(tmp_path: Path) -> None:
    unigram = field(1, field(1, b"a")) + field(2, bytes([3 << 3, 1]))
    (tmp_path / "tokenizer.model").write_bytes(unigram)
    with pytest.raises(ModelError, match=r"no SentencePiece model of type BPE \(found type 1\): Llama's is"):
        load_tokenizer(tmp_path, "template")


@pytest.mark.parametrize("content", [b"\x0a\xff", b"\x0a\x02\x0a", b"{}", field(1, field(1, b"\xff\xfe")), b"\x0f"])
def test_a_corrupt_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match="is no SentencePiece model"):
        load_tokenizer(tmp_path, "template")


def test_a_truncated_sentencepiece_model_is_refused(folder: Path) -> None:
    content = (folder / "tokenizer.model").read_bytes()
    for size in (0, 1, 1000, len(content) - 1):
        (folder / "tokenizer.model").write_bytes(content[:size])
        with pytest.raises(ModelError, match="is no SentencePiece model"):
            load_tokenizer(folder, "template")

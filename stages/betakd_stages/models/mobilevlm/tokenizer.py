"""Llama's tokenizer of a MobileVLM V2 folder, from tokenizer.json or from SentencePiece's tokenizer.model.

transformers reads a tokenizer.model through protobuf. The few fields that a Llama tokenizer has are read here instead:
field 1 of the message repeats (1 text, 2 score, 3 kind) of every piece, field 2 holds the trainer's settings.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

from betakd_stages.errors import ModelError

SENTENCEPIECE_FILE = "tokenizer.model"
NORMAL_PIECE = 1
BPE_MODEL = 2
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def load_tokenizer(folder: Path, chat_template: str) -> LlamaTokenizer:
    """The tokenizer, padding with its end token.

    Raises ModelError for a folder without one, another kind of tokenizer, and another chat template in the folder.
    """
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.is_file() else {}
    # Since Llama 2 files say `legacy`; without it the published code meant the older behaviour, transformers the newer.
    legacy = settings.get("legacy", True)
    if (folder / "tokenizer.json").is_file():
        tokenizer = LlamaTokenizer.from_pretrained(folder, local_files_only=True, legacy=legacy)
    elif (folder / SENTENCEPIECE_FILE).is_file():
        vocabulary, merges = read_sentencepiece(folder / SENTENCEPIECE_FILE)
        tokenizer = LlamaTokenizer(vocabulary, merges, legacy=legacy)
    else:
        raise ModelError(f"{folder} holds neither tokenizer.json nor tokenizer.model: copy one beside config.json")
    missing = [piece for piece in BYTE_PIECES if piece not in tokenizer.get_vocab()]
    if missing:
        raise ModelError(
            f"the tokenizer of {folder} lacks the byte {missing[0]}: unknown text would become {tokenizer.unk_token}, "
            "which stands for images here. Give a Llama tokenizer with byte fallback"
        )
    tokenizer.init_kwargs["legacy"] = legacy  # transformers does not save it
    if tokenizer.chat_template not in (None, chat_template):
        raise ModelError(
            f"{folder} holds a chat template that is not MobileVLM V2's: prompts follow prompt_version in config.json, "
            "remove chat_template.jinja"
        )
    tokenizer.chat_template = chat_template
    # Published files pad with <unk>, the image placeholder; padding is masked, so any other token will do.
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_sentencepiece(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The id of each piece, and the merges in order of rank. Raises ModelError where it is no BPE model."""
    vocabulary: dict[str, int] = {}
    not_merged: set[str] = set()
    model_type = None
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                text = piece[1].decode()
                vocabulary[text] = len(vocabulary)
                if piece.get(3, NORMAL_PIECE) != NORMAL_PIECE:
                    not_merged.add(text)
            elif number == 2:
                model_type = dict(_fields(value)).get(3)
    except (IndexError, KeyError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is no SentencePiece model ({type(error).__name__}): copy it again") from None
    if model_type != BPE_MODEL:
        raise ModelError(f"{path} is no SentencePiece model of type BPE (found type {model_type}): Llama's is")
    return vocabulary, generate_merges(vocabulary, skip_tokens=not_merged)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message: int for varints, bytes for everything else."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        if position + size > len(message):
            raise IndexError(f"a field of {size} bytes runs over the message's end")
        yield number, message[position : position + size]
        position += size

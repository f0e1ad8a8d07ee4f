"""Remakes llama_style.model, a small SentencePiece model with Llama's settings, and llama_style.json, what
SentencePiece makes of prompts with it, used as Llama's slow tokenizer uses it.

Needs `pip install sentencepiece` (tests do not): python tests/vectors/make_llama_style.py
"""

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import sentencepiece  # type: ignore[import-not-found]

FOLDER = Path(__file__).parent
SENTENCES = """A chat between a curious user and an artificial intelligence assistant.
The assistant gives helpful, detailed, and polite answers to the user's questions.
USER: What is it? ASSISTANT: A cat. USER: Colour? ASSISTANT: Black.
which digit is this ? is this digit even ? is the left digit greater than the right digit ?
is this digit a prime number ? what is the sum of the two digits ? yes no left right
Answer with the option's letter from the given choices directly.
The dog sleeps on the green grass near the old house. A red bus stops at the corner of the street.
Two people are walking along the beach, and the sun is setting behind them.""".splitlines()
TEXTS = [
    "Hello",
    "\nWhat is it? ASSISTANT:",
    "naïve café ☃ 日本",
    "two  spaces",
    "a\ttab",
    "A cat.\n",
    "12 345",
    "<unk >",
]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
CONVERSATIONS = [
    {"version": "v1", "image": True, "turns": [["What is it?", "A cat."]]},
    {"version": "v1", "image": True, "turns": [["What is it?", "A cat."], ["Colour?", "Black ☃."]]},
    {"version": "v1", "image": False, "turns": [["Hello", "Two people\nare walking."]]},
    {"version": "plain", "image": True, "turns": [["Describe it", "A red bus stops."]]},
]
BOS, EOS, IMAGE = 1, 2, -200


def main() -> None:
    """Write both files."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        num_threads=1,
    )
    (FOLDER / "llama_style.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    golden = {
        "command": "python tests/vectors/make_llama_style.py",
        "versions": {"sentencepiece": sentencepiece.__version__},
        "date": date.today().isoformat(),
        "pieces": [processor.id_to_piece(index) for index in range(processor.get_piece_size())],
        "texts": [{"text": text, "ids": processor.encode(text)} for text in TEXTS],
        "conversations": [
            {**conversation, "legacy": legacy, **encoded(processor, conversation, legacy)}
            for conversation in CONVERSATIONS
            for legacy in (True, False)
        ],
    }
    (FOLDER / "llama_style.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def encoded(processor: Any, conversation: dict[str, Any], legacy: bool) -> dict[str, list[int]]:
    """Ids with IMAGE for each image, and labels (-100 where unsupervised), of a conversation."""
    ids, labels = [BOS], [-100]

    def add(text: str, supervised_from: int, *, leads: bool = True) -> None:
        """Add `text`, supervised from a character on; `leads` is whether it begins a stretch between images."""
        pieces = encode(text, leads)
        prompt = encode(text[:supervised_from], leads) if supervised_from else []
        assert pieces[: len(prompt)] == prompt
        ids.extend(pieces)
        labels.extend([-100] * len(prompt) + pieces[len(prompt) :])

    def encode(text: str, leads: bool) -> list[int]:
        if legacy or leads:
            return list(processor.encode(text))
        # What follows a control token gets no leading space: encode behind another text, and cut that off.
        return list(processor.encode("<unk>" + text))[len(processor.encode("<unk>")) :]

    if conversation["version"] == "plain":
        ids.append(IMAGE)
        labels.append(-100)
        add(conversation["turns"][0][1] + "\n", 0)
        return {"ids": ids, "labels": labels}
    for number, (question, answer) in enumerate(conversation["turns"]):
        head = "USER: " if number else SYSTEM + "USER: "
        if conversation["image"] and number == 0:
            add(head, len(head))
            ids.append(IMAGE)
            labels.append(-100)
            head = "\n"
        prompt = f"{head}{question} ASSISTANT:"
        add(f"{prompt} {answer}", len(prompt), leads=number == 0)
        ids.append(EOS)
        labels.append(EOS)
    return {"ids": ids, "labels": labels}


if __name__ == "__main__":
    main()

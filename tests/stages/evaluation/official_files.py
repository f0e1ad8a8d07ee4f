"""Small benchmarks in the official file formats, as their authors and LLaVA publish them."""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
PERCEPTION = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
OPTIONS = ("a red car", "a blue bus", "a dog", "a cat")


def png(seed: int) -> bytes:
    """A small picture of its own for every seed."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_scienceqa(folder: Path) -> str:
    """Four problems, two of them with an image; questions.json asks them as LLaVA's llava_test_CQM-A.json does."""
    problems, questions = {}, []
    for number in range(4):
        pid, shown, choices = str(number + 5), number % 2 == 0, ["cat", "dog", "ant"][: 2 + number % 2]
        hint = "Look." if number == 0 else ""
        problems[pid] = {
            "question": f"Which is {number}?",
            "choices": choices,
            "answer": number % 2,
            "hint": hint,
            "image": "image.png" if shown else None,
            "subject": "natural science",
            "split": "test",
        }
        if shown:
            write_image(folder / "images" / "test" / pid / "image.png", number)
        options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABC", choices, strict=False))
        value = ("<image>\n" if shown else "") + (f"Context: {hint}\n" if hint else "") + f"Which is {number}?{options}"
        conversations = [
            {"from": "human", "value": value},
            {"from": "gpt", "value": f"The answer is {'AB'[number % 2]}."},
        ]
        image = {"image": f"{pid}/image.png"} if shown else {}
        questions.append({"id": pid, **image, "conversations": conversations})
    write_json(folder / "problems.json", problems | {"1": {**problems["5"], "split": "train", "image": None}})
    write_json(folder / "pid_splits.json", {"train": ["1"], "test": list(problems)})
    write_json(folder / "questions.json", questions)
    return f"scienceqa={folder}"


def write_gqa(folder: Path) -> str:
    """Four questions; questions.jsonl asks them as LLaVA's llava_gqa_testdev_balanced.jsonl does."""
    answers = {"201": ("yes", "verify"), "202": ("dog", "query"), "203": ("left", "choose"), "204": ("red", "query")}
    questions = {
        number: {
            "question": f"What about {number}?",
            "answer": answer,
            "imageId": f"n{number}",
            "isBalanced": True,
            "types": {"structural": kind, "semantic": "attr", "detailed": "x"},
            "groups": {"global": kind},
        }
        for number, (answer, kind) in answers.items()
    }
    for number in questions:
        write_image(folder / "images" / f"n{number}.jpg", int(number))
    write_json(folder / "testdev_balanced_questions.json", questions)
    rows = [
        {"question_id": key, "image": f"n{key}.jpg", "text": f"What about {key}?\n{PHRASE}", "category": "default"}
        for key in reversed(questions)
    ]
    write_lines(folder / "questions.jsonl", rows)
    return f"gqa={folder}"


def write_textvqa(folder: Path) -> str:
    """Three questions about two images; questions.jsonl asks them with OCR tokens, as LLaVA's file does."""
    annotations, rows = [], []
    for number, (image, question) in enumerate((("i1", "What brand?"), ("i1", "What year?"), ("i2", "What brand?"))):
        answers = ["nokia"] * (4 + number) + ["a", "the nokia", "lg", "htc", "2", "two"][: 6 - number]
        annotations.append({"question_id": 340 + number, "image_id": image, "question": question, "answers": answers})
        text = f"{question}\nReference OCR token: NOKIA, {number}\n{PHRASE}"
        rows.append({"question_id": image, "image": f"{image}.jpg", "text": text, "category": "default"})
        write_image(folder / "train_images" / f"{image}.jpg", number)
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": annotations})
    write_lines(folder / "questions.jsonl", rows)
    return f"textvqa={folder}"


def write_pope(folder: Path, num_lines: int = 4) -> str:
    """So many lines of every set; questions.jsonl asks them under ids of their own, as llava_pope_test.jsonl does."""
    asked = []
    for place, name in enumerate(("random", "popular", "adversarial")):
        rows = []
        for number in range(1, num_lines + 1):
            text, label = f"Is there a {name} {number}?", ("yes", "no")[number % 2]
            row = {"question_id": number, "image": f"COCO_{number % 2}.jpg", "text": text, "label": label}
            rows.append(row)
            asked.append(row | {"question_id": 1000 * place + number, "text": f"{text}\n{PHRASE}", "category": name})
        write_lines(folder / f"coco_pope_{name}.json", rows)
    write_lines(folder / "questions.jsonl", asked)
    for number in range(2):
        write_image(folder / "val2014" / f"COCO_{number}.jpg", number)
    return f"pope={folder}"


def write_mme(folder: Path, cognition: bool = True) -> str:
    """Two images of every task, in the three layouts that the release has: a text file per image, beside it or in a
    folder of its own, and one file of all lines."""
    for place, task in enumerate([*PERCEPTION, *(COGNITION if cognition else [])]):
        lines_of_all = []
        for number in range(2):
            pairs = [(f"Is it {number}? Please answer yes or no.", "Yes"), (f"Is it not?  {task}", "No")]
            lines = [f"{question}\t{answer}" for question, answer in pairs]
            apart = task in ("posters", "artwork")
            write_image(folder / task / ("images" if apart else "") / f"{number:04}.png", place)
            if task == "OCR":
                lines_of_all += [f"{number:04}.png\t{line}" for line in lines]
                continue
            texts = folder / task / ("questions_answers_YN" if apart else "")
            texts.mkdir(exist_ok=True)
            (texts / f"{number:04}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if lines_of_all:
            (folder / f"{task}.txt").write_text("\n".join(lines_of_all) + "\n", encoding="utf-8")
    return f"mme={folder}"


def write_mmbench(folder: Path) -> str:
    """Three questions with 4, 2 and 3 options and all rotations; those of the second refer to its image by index."""
    header = ["index", "question", "hint", *"ABCD", "answer", "category", "image", "source", "l2-category", "split"]
    rows = []
    for number, count in enumerate((4, 2, 3), start=1):
        for turn in range(count):
            options = [*OPTIONS[turn:count], *OPTIONS[:turn]] + [""] * (4 - count)
            image = base64.b64encode(png(number)).decode() if turn == 0 or number != 2 else str(number)
            answer = "ABCD"[(1 - turn) % count]  # always the second of the unrotated options
            index, hint = number + 1_000_000 * turn, "Look here." if number == 1 else "nan"
            question = f'Which of "{number}" is it?' if number == 3 else f"Which of {number} is it?"
            rows.append([index, question, hint, *options, answer, f"kind {number % 2}", image, "web", "coarse", "dev"])
    lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mmbench_dev_20230712.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"mmbench={folder / 'mmbench_dev_20230712.tsv'}"


WRITERS = {
    "scienceqa": write_scienceqa,
    "gqa": write_gqa,
    "textvqa": write_textvqa,
    "pope": write_pope,
    "mme": write_mme,
    "mmbench": write_mmbench,
}

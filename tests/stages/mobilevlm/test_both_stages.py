"""MobileVLM V2 through the command line: cache-teacher, distill, evaluate, all folders in the published layout."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.stages.mobilevlm.published import (
    TINY_STUDENT,
    TINY_TEACHER,
    random_tensors,
    tensor_shapes,
    vision_shapes,
    write_published,
)

from betakd_cache import open_cache
from betakd_pipe.cli import main

NUM_SAMPLES = 12
TRAINING = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "num_threads": 1, "train_projector": True}


def write_data(folder: Path) -> Path:
    """Photos of several shapes; every second sample has two turns, every third no image."""
    entries = []
    (folder / "photos").mkdir()
    for number in range(NUM_SAMPLES):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        mark, image = ("<image>\n", {"image": f"{number}.png"}) if number % 3 else ("", {})
        texts = [f"{mark}What is it?", "A cat.", "Colour?", f"Black {number}."][: 2 + 2 * (number % 2)]
        values = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
        entries.append({"id": str(number), **image, "conversations": values})
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder / "data.json"


def succeeds(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def test_a_published_teacher_is_cached_and_a_published_student_distilled_and_evaluated(tmp_path: Path) -> None:
    teacher = write_published(tmp_path / "teacher", TINY_TEACHER, seed=1, form="bin", num_shards=2)
    student = write_published(tmp_path / "student", TINY_STUDENT, seed=2, image_aspect_ratio="square")
    data = f"llava:{write_data(tmp_path)}?images={tmp_path / 'photos'}"
    cache, run, scores = (str(tmp_path / name) for name in ("cache", "run", "scores"))

    succeeds("cache-teacher", "--teacher", str(teacher), "--data", data, "--out", cache)
    assert len(open_cache(cache)) == NUM_SAMPLES
    assert open_cache(cache).manifest.identity["teacher"]["model_type"] == "mobilevlm"

    settings = [part for key, value in TRAINING.items() for part in ("--set", f"training.{key}={value}")]
    channels = ["--energy", "fkl", "--energy", "rkl", "--feature", "vision", "--weighting", "task"]
    inputs = ["--student", str(student), "--cache", cache, "--data", data]
    succeeds("distill", *inputs, *channels, *settings, "--out", run)
    written = load_file(Path(run) / "model" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == tensor_shapes(TINY_STUDENT)
    before = random_tensors(TINY_STUDENT, seed=2)
    unchanged = {name for name, tensor in written.items() if torch.equal(tensor, before[name])}
    assert unchanged == set(vision_shapes(TINY_STUDENT))  # the tower is frozen, all else is trained
    assert json.loads((Path(run) / "model" / "config.json").read_text())["image_aspect_ratio"] == "square"

    options = ["--set", "max_new_tokens=4", "--set", "batch_size=8"]
    succeeds("evaluate", run, "--benchmark", "digits?count=12", *options, "--out", scores)
    predictions = (Path(scores) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == json.loads((Path(scores) / "scores.json").read_text())["num_questions"] == 12

"""MobileVLM V2 through the command line: cache-teacher, distill, evaluate, all folders in the published layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.stages.mobilevlm.published import (
    TINY_STUDENT,
    TINY_TEACHER,
    random_tensors,
    tensor_shapes,
    vision_shapes,
    write_published,
)
from tests.stages.photos import NUM_SAMPLES, write_photos

from betakd_cache import open_cache
from betakd_pipe.cli import main

TRAINING = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "num_threads": 1, "train_projector": True}


def succeeds(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def test_a_published_teacher_is_cached_and_a_published_student_distilled_and_evaluated(tmp_path: Path) -> None:
    teacher = write_published(tmp_path / "teacher", TINY_TEACHER, seed=1, form="bin", num_shards=2)
    student = write_published(tmp_path / "student", TINY_STUDENT, seed=2, image_aspect_ratio="square")
    data = write_photos(tmp_path)
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

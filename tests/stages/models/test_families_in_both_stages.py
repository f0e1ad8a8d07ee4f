"""cache-teacher, distill and evaluate through the command line, for LLaVA-Qwen, Qwen2.5-VL and SmolVLM."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.stages.models.families import FAMILIES
from tests.stages.models.parts import save_clip, save_language_model
from tests.stages.photos import NUM_SAMPLES, write_photos

from betakd_cache import open_cache
from betakd_pipe.cli import main
from betakd_stages.data import load_samples
from betakd_stages.distillation.cached_targets import decode_batch
from betakd_stages.encoding import IGNORED, model_inputs
from betakd_stages.models.building import build_model
from betakd_stages.models.loading import load_encoder, load_model

TRAINING = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "num_threads": 1, "train_projector": True}
NEVER_TRAINED = {
    "llava": "vision_tower.",
    "qwen2_5_vl": "visual.",  # of which the merger is the projector
    "smolvlm": "vision_model.",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_photos(tmp_path_factory.mktemp("data"))


def save_pair(family: str, folder: Path) -> tuple[Path, Path]:
    """A wide teacher and a narrow student, padded to different numbers of rows."""
    if family != "llava":
        own = FAMILIES[family]
        return own.save(folder / "teacher", seed=1, width=64, num_rows=352), own.save(folder / "student", seed=2)
    wide = save_language_model(folder / "wide", seed=1, width=64, num_rows=352)
    narrow = save_language_model(folder / "narrow", seed=2, width=32, num_rows=320)
    tower = save_clip(folder / "tower")
    return build_model(wide, tower, folder / "teacher").folder, build_model(narrow, tower, folder / "student").folder


def succeeds(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def distil(student: Path, cache: Path, data: str, run: Path, *more: str) -> None:
    settings = [part for key, value in TRAINING.items() for part in ("--set", f"training.{key}={value}")]
    channels = ["--energy", "fkl", "--energy", "rkl", "--feature", "vision", "--weighting", "task"]
    inputs = ["--student", str(student), "--cache", str(cache), "--data", data]
    succeeds("distill", *inputs, *channels, *settings, "--out", str(run), *more)


def check_cached_numbers(teacher: Path, cache: Path, data: str) -> None:
    """The cache has, of the first sample with an image, what the teacher's own forward pass gives over real tokens."""
    loaded, reader = load_model(teacher), open_cache(cache)
    real = loaded.encoder.vocabulary_size
    assert loaded.model.get_output_embeddings().weight.shape[0] > real
    one = next(each for each in load_samples(data) if each.image is not None)
    encoded = loaded.encoder.encode(one)
    with torch.inference_mode():
        logits = loaded.model(**model_inputs(loaded.encoder.collate([encoded]))).logits[0, :-1].double().numpy()
    logits = logits[encoded.labels[1:].numpy() != IGNORED][:, :real]
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    batch = reader.batch(reader.index_of([one.sample_id]))
    targets = decode_batch(batch, reader.manifest, torch.device("cpu")).targets
    assert targets.vocabulary_size == real
    found = targets.log_probabilities(1.0)
    kept = targets.kept
    np.testing.assert_allclose(
        found[kept], torch.from_numpy(expected).gather(1, targets.ids)[kept], atol=0.02, err_msg="log probabilities"
    )


@pytest.mark.parametrize("family", NEVER_TRAINED)
def test_a_family_goes_through_both_stages_with_different_padding(family: str, data: str, tmp_path: Path) -> None:
    teacher, student = save_pair(family, tmp_path)
    cache, run, scores = (tmp_path / name for name in ("cache", "run", "scores"))
    succeeds("cache-teacher", "--teacher", str(teacher), "--data", data, "--out", str(cache))
    assert len(open_cache(cache)) == NUM_SAMPLES
    assert open_cache(cache).manifest.identity["teacher"]["model_type"] == family
    check_cached_numbers(teacher, cache, data)

    distil(student, cache, data, run)
    written, before = (load_file(folder / "model.safetensors") for folder in (run / "model", student))
    assert {name: tensor.shape for name, tensor in written.items()} == {n: t.shape for n, t in before.items()}
    unchanged = {name for name, tensor in written.items() if torch.equal(tensor, before[name])}
    tower = {name for name in written if NEVER_TRAINED[family] in name and ".merger." not in name}
    assert unchanged == tower

    options = ["--set", "max_new_tokens=4", "--set", "batch_size=8"]
    succeeds("evaluate", str(run), "--benchmark", "digits?count=4", *options, "--out", str(scores))
    assert json.loads((scores / "scores.json").read_text())["num_questions"] == 4


def test_a_student_of_another_family_learns_where_tokenizers_are_the_same(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = FAMILIES["qwen2_5_vl"].save(tmp_path / "teacher", seed=1, width=64, num_rows=352)
    language, tower = save_language_model(tmp_path / "language"), save_clip(tmp_path / "tower")
    student = build_model(language, tower, tmp_path / "student").folder
    cache = tmp_path / "cache"
    succeeds("cache-teacher", "--teacher", str(teacher), "--data", data, "--out", str(cache))
    inputs = ["--student", str(student), "--cache", str(cache), "--data", data]
    refused = ["distill", *inputs, "--out", str(tmp_path / "no")]
    assert main(refused) == 2
    assert "the student's prompt is not the one of the cache (template_sha256" in capsys.readouterr().err
    distil(student, cache, data, tmp_path / "run", "--set", "prompts=own")
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert main([*refused, "--set", "prompts=own", "--set", "max_length=60"]) == 2
    message = capsys.readouterr().err
    assert "sample '0': sample 0 is 74 tokens long, at most 60 are taken: raise max_length" in message


def test_samples_that_are_too_long_are_rejected_by_the_teacher_and_dropped_by_the_student(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = save_pair("llava", tmp_path)
    encoder = load_encoder(teacher)
    lengths = {one.sample_id: len(encoder.encode(one).input_ids) for one in load_samples(data)}
    limit = sorted(lengths.values())[NUM_SAMPLES // 2]
    too_long = {name for name, length in lengths.items() if length > limit}
    assert 0 < len(too_long) < NUM_SAMPLES
    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    common = ["cache-teacher", "--teacher", str(teacher), "--data", data]
    limited = ["--set", f"max_length={limit}"]
    succeeds(*common, "--out", whole)
    assert main([*common, "--out", part, *limited]) == 2
    assert f"tokens long, at most {limit} are taken: raise max_length" in capsys.readouterr().err
    succeeds(*common, "--out", part, *limited, "--set", f"max_rejected={NUM_SAMPLES}", "--overwrite")
    cache = open_cache(part)
    assert set(cache.rejected) == too_long
    assert all(f"at most {limit} are taken" in reason for reason in cache.rejected.values())

    run = tmp_path / "run"
    distil(student, Path(whole), data, run, *limited, "--on-mismatch", "drop", "--set", "training.batch_size=2")
    assert json.loads((run / "result.json").read_text())["metrics"]["num_dropped"] == len(too_long)

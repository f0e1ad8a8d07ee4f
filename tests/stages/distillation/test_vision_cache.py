"""Stage two from a vision cache: the same losses, gradients and students, without pixels and without the tower."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.stages.models.world import folder_of
from tests.stages.vision_world import PAIRS, VisionWorld, make_world
from torch.utils.data import DataLoader
from transformers import CLIPVisionModel

from betakd_cache import FeatureLayout, open_cache
from betakd_pipe.cli import main
from betakd_stages.data import images, load_samples
from betakd_stages.distillation.cached_vision import RowsEncoder, rows_encoder
from betakd_stages.distillation.dataset import EncodedSamples, make_collator
from betakd_stages.encoding import packed
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.models.tower_rows import TOWER_ROWS, tower_rows

FLOAT16_TOLERANCE = 1e-4
"""What rounding the rows to 11 bits makes of metrics and weights, at most."""


@pytest.fixture(scope="module", params=PAIRS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VisionWorld:
    return make_world(request.param, tmp_path_factory.mktemp(request.param))


def metrics(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if value is not None} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors") | load_file(run / "weighting.safetensors")


@pytest.fixture(scope="module")
def with_tower(made: VisionWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a student that saw pixels."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert main(made.arguments(run)) == 0
    return run


@pytest.mark.parametrize(("name", "tolerance"), [("exact", 1e-6), ("compact", FLOAT16_TOLERANCE)])
def test_a_student_learns_from_rows_what_it_learns_from_pixels_and_neither_decodes_them_nor_runs_its_tower(
    made: VisionWorld,
    with_tower: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tolerance: float,
) -> None:
    def forbidden(*arguments: object, **named: object) -> None:
        raise AssertionError("not with a vision cache")

    monkeypatch.setattr(CLIPVisionModel, "forward", forbidden)
    monkeypatch.setattr(images, "decode_image", forbidden)
    run = tmp_path / "run"
    assert main(made.arguments(run, "--vision-cache", str(getattr(made, name)))) == 0
    found, expected = metrics(run), metrics(with_tower)
    assert len(found) == len(expected) == 6
    assert found[0]["energy/feature:vision"] > 0.1
    for own, other in zip(found, expected, strict=True):
        assert own.keys() == other.keys()
        for key, value in other.items():
            assert own[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key
    learned, reference = weights(run), weights(with_tower)
    assert learned.keys() == reference.keys()
    for key, tensor in reference.items():
        torch.testing.assert_close(learned[key], tensor, rtol=tolerance, atol=tolerance, msg=key)


def both_batches(
    made: VisionWorld, student: LoadedModel, places: list[int]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], RowsEncoder]:
    """A batch with pixels, the same with rows, and what made the latter."""
    rows = rows_encoder(student, open_cache(made.exact), None)
    samples = load_samples(made.data)
    chosen = [samples[place] for place in places]
    batches = [encoder.collate([encoder.encode(one) for one in chosen]) for encoder in (student.encoder, rows)]
    return batches[0], batches[1], rows


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [4, 5], [3, 0, 6], [8, 8, 0]], ids=str)
def test_states_features_and_gradients_are_those_of_the_pixels_in_batches_with_and_without_images(
    made: VisionWorld, places: list[int]
) -> None:
    student = load_model(made.student)
    pixels, rows, _ = both_batches(made, student, places)
    assert "pixel_values" not in rows
    assert (TOWER_ROWS in rows) == bool(rows["has_image"].any())
    torch.testing.assert_close(rows["has_image"], pixels["has_image"])
    layouts = {"vision": FeatureLayout("grid:2x2", 4), "prompt": FeatureLayout()}
    found = []
    for batch in (pixels, rows):
        student.model.zero_grad()
        answer = answer_rows(student.model, batch, layouts)
        total = answer.hidden.square().mean() + sum(value.abs().mean() for value in answer.features.values())
        assert isinstance(total, torch.Tensor)
        total.backward()
        gradients = {
            name: torch.zeros(()) if value.grad is None else value.grad.clone()
            for name, value in student.model.named_parameters()
            if "vision_tower" not in name
        }
        found.append((answer, gradients))
    (with_pixels, expected), (with_rows, gradients) = found
    torch.testing.assert_close(with_rows.hidden, with_pixels.hidden, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(with_rows.features, with_pixels.features, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(with_rows.present, with_pixels.present)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-5, atol=1e-6, msg=name)
    has_image = bool(rows["has_image"].any())
    assert bool(gradients[next(name for name in gradients if "projector" in name)].any()) == has_image


def test_packed_rows_give_the_states_and_features_of_padded_pixels(made: VisionWorld) -> None:
    student = load_model(made.student)
    pixels, rows, _ = both_batches(made, student, [1, 0, 4, 3, 2])
    layouts = {"vision": FeatureLayout("grid:2x2", 4), "prompt": FeatureLayout()}
    with torch.no_grad():
        found = answer_rows(student.model, packed(rows), layouts)
        expected = answer_rows(student.model, pixels, layouts)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.features, expected.features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sample_index, expected.sample_index)


@pytest.mark.parametrize("family", ["llava (CLIP)", "llava (SigLIP)"])
def test_a_row_is_the_second_to_last_layer_and_of_siglip_that_of_every_patch(family: str) -> None:
    model = load_model(folder_of(family)).model
    size = model.config.vision_config.image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    base: Any = model.base_model
    with torch.no_grad():
        states = base.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    expected = states[:, 1:] if family == "llava (CLIP)" else states
    torch.testing.assert_close(tower_rows(model, pixels), expected, rtol=0, atol=0)


def test_worker_processes_read_the_rows_by_themselves(made: VisionWorld) -> None:
    student = load_model(made.student)
    rows = rows_encoder(student, open_cache(made.compact), None)
    dataset = EncodedSamples(load_samples(made.data), rows, None)
    collator = make_collator(rows, None, None)
    batches = [list(DataLoader(dataset, 4, collate_fn=collator, num_workers=number)) for number in (0, 2)]
    assert len(batches[0]) == 3
    for own, other in zip(*batches, strict=True):
        assert own[TOWER_ROWS].dtype == torch.float16
        torch.testing.assert_close(own[TOWER_ROWS], other[TOWER_ROWS])
        torch.testing.assert_close(own["input_ids"], other["input_ids"])
    again = pickle.loads(pickle.dumps(open_cache(made.compact)))  # noqa: S301  # our own bytes
    places = [again.index_of([sample.image.sha256()])[0] for sample in dataset._samples if sample.image]
    expected = [batch[TOWER_ROWS].numpy() for batch in batches[0]]
    np.testing.assert_array_equal(again.batch(places).arrays["features/tower"], np.concatenate(expected))


def test_labels_alone_train_from_rows_too(made: VisionWorld, tmp_path: Path) -> None:
    runs = {}
    for name, more in (("pixels", []), ("rows", ["--vision-cache", str(made.exact)])):
        command = made.arguments(tmp_path / name, "--energy", "ce", *more)
        for flag in ("--cache", "--feature", "--energy", "--energy"):
            place = command.index(flag)
            del command[place : place + 2]
        assert main(command) == 0
        runs[name] = metrics(tmp_path / name)
    for own, other in zip(runs["rows"], runs["pixels"], strict=True):
        assert own == pytest.approx(other, rel=1e-6, abs=1e-6)


def test_validation_in_between_sees_pixels_and_training_does_not(
    made: VisionWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = CLIPVisionModel.forward, Counter[str]()

    def counting(self: CLIPVisionModel, pixel_values: torch.Tensor, **named: object) -> object:
        seen["training" if torch.is_grad_enabled() else "measuring"] += 1
        return forward(self, pixel_values, **named)

    monkeypatch.setattr(CLIPVisionModel, "forward", counting)
    asked = ["--set", f"validation={made.data}", "--set", "training.evaluate_every_steps=3"]
    asked += ["--set", "training.probe_samples=0"]  # the probe sees training samples, so rows where training does
    assert main(made.arguments(tmp_path / "pixels", *asked)) == 0
    of_pixels = Counter(seen)
    seen.clear()
    assert main(made.arguments(tmp_path / "rows", *asked, "--vision-cache", str(made.exact))) == 0
    assert of_pixels["training"] > 3
    assert seen == {"measuring": of_pixels["measuring"]}
    assert seen["measuring"] >= 3
    read = [(tmp_path / name / "validation.jsonl").read_text() for name in ("pixels", "rows")]
    assert read[0] == read[1]
    assert len(read[0].splitlines()) == 2

"""Loading a model folder, and what is refused instead of loaded with a warning."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.world import World

from betakd_stages.errors import ModelError
from betakd_stages.models.loading import load_encoder, load_model, model_folder


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """A student that a test may damage."""
    return Path(shutil.copytree(world.student, tmp_path / "student"))


def test_weights_of_a_bin_file_are_those_of_the_safetensors_file(world: World, folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found, expected = load_model(folder).model.state_dict(), load_model(world.student).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_a_foreign_and_a_misshapen_tensor_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    bias = next(name for name in tensors if name.endswith("multi_modal_projector.linear_1.bias"))
    for message, changed in {
        "lacks 1 tensors, such as .*linear_1.bias": {name: tensors[name] for name in tensors if name != bias},
        "holds besides the model's 1 tensors, such as extra: weights": {**tensors, "extra": torch.ones(1)},
        "has of another shape 1 tensors, such as .*linear_1.bias": {**tensors, bias: torch.ones(3)},
    }.items():
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            load_model(folder)


def test_a_corrupt_weight_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="the model in .* cannot be loaded"):
        load_model(folder)


def test_an_unknown_family_is_refused_by_name(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="is of model type 'bert': supported are llava"):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_folder_without_tokenizer_or_image_processor_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match="lacks a tokenizer or an image processor"):
        load_encoder(folder)


def test_what_is_no_model_folder_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent does not exist: give a folder written by save_pretrained"):
        model_folder(tmp_path / "absent")
    with pytest.raises(ModelError, match="holds no config.json: expected a folder written by save_pretrained"):
        model_folder(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ModelError, match="has no model/: the run is not finished, run the same command again first"):
        model_folder(tmp_path)


def test_a_saved_encoder_is_loaded_as_it_was(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(folder)
    loaded.model.save_pretrained(tmp_path / "copy")
    loaded.encoder.save(tmp_path / "copy")
    assert load_encoder(tmp_path / "copy").identity() == loaded.encoder.identity()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "llava"', r"config.json is not valid JSON \(Expecting.*copy it again"),
        (b"\xff\xfe\x00", r"config.json is not valid JSON .*copy it again"),
        (b"[1, 2]", "is of model type None: supported are llava"),
    ],
)
def test_a_damaged_config_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_encoder(folder)

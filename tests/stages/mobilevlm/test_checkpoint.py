"""Checkpoints in the published layout: read, written, and refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.stages.mobilevlm.published import (
    MOBILEVLM_1_7B,
    MOBILEVLM_7B,
    TINY_STUDENT,
    TINY_TEACHER,
    Sizes,
    language_shapes,
    projector_shapes,
    published_config,
    random_tensors,
    tensor_shapes,
    vision_shapes,
    write_published,
)
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from betakd_stages.errors import ModelError
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.models.mobilevlm.configuration import MobileVlmConfig
from betakd_stages.models.mobilevlm.model import KEY_MAPPING, MobileVlmForConditionalGeneration, published_name


def own_tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """The model's tensors under their published names."""
    return {published_name(name): tensor for name, tensor in loaded.model.state_dict().items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_every_tensor_of_a_published_folder_is_loaded_bit_for_bit(tmp_path: Path, form: str, num_shards: int) -> None:
    folder = write_published(tmp_path / "model", TINY_TEACHER, seed=1, form=form, num_shards=num_shards)
    assert_same_bits(own_tensors(load_model(folder)), random_tensors(TINY_TEACHER, seed=1))


@pytest.mark.parametrize("max_shard_size", ["50GB", "20KB"])
def test_a_saved_model_is_in_the_published_layout_and_loads_again(tmp_path: Path, max_shard_size: str) -> None:
    loaded = load_model(write_published(tmp_path / "model", TINY_TEACHER, seed=1))
    out = tmp_path / "saved"
    loaded.model.save_pretrained(out, max_shard_size=max_shard_size)
    loaded.encoder.save(out)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == 1 if max_shard_size == "50GB" else len(files) > 1
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert_same_bits(written, random_tensors(TINY_TEACHER, seed=1))
    assert_same_bits(own_tensors(load_model(out)), written)
    assert (out / "tokenizer.model").read_bytes() == (tmp_path / "model" / "tokenizer.model").read_bytes()
    assert not (out / "preprocessor_config.json").exists()


def test_a_model_that_was_never_loaded_is_saved_in_the_published_layout_too(tmp_path: Path) -> None:
    model = MobileVlmForConditionalGeneration(MobileVlmConfig.from_dict(published_config(TINY_STUDENT)))
    model.save_pretrained(tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert shapes == tensor_shapes(TINY_STUDENT)


@pytest.mark.parametrize("sizes", [TINY_STUDENT, MOBILEVLM_1_7B, MOBILEVLM_7B], ids=["tiny", "1.7B", "7B"])
def test_the_published_configuration_survives_being_read_and_written(tmp_path: Path, sizes: Sizes) -> None:
    published = published_config(sizes)
    MobileVlmConfig.from_dict(published).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    changed_by_transformers = {"transformers_version", "rope_scaling"}  # no scaling is written by leaving it out
    for key in published.keys() - changed_by_transformers - {"vision_config"}:
        assert written[key] == published[key], key
    assert "rope_scaling" not in written
    assert ("vision_config" in written) == ("vision_config" in published)
    again = MobileVlmConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == MobileVlmConfig.from_dict(published).to_diff_dict()


def test_scaled_rotary_embeddings_survive_being_read_and_written(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    MobileVlmConfig.from_dict(published_config(TINY_STUDENT, rope_scaling=scaling)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["rope_scaling"], written["rope_theta"]) == (scaling, 10000.0)
    assert MobileVlmConfig.from_pretrained(tmp_path).text_config.rope_parameters == {**scaling, "rope_theta": 10000.0}


def test_settings_of_a_tower_of_ones_own_survive_being_read_and_written(tmp_path: Path) -> None:
    tower = {**published_config(TINY_STUDENT)["vision_config"], "hidden_act": "gelu", "layer_norm_eps": 1e-3}
    MobileVlmConfig.from_dict(published_config(TINY_STUDENT, vision_config=tower)).save_pretrained(tmp_path)
    again = MobileVlmConfig.from_pretrained(tmp_path)
    assert (again.vision_config.hidden_act, again.vision_config.layer_norm_eps) == ("gelu", 1e-3)
    assert again.mm_vision_tower == "tiny-clip"


@pytest.mark.parametrize(
    ("sizes", "num_language", "billions"),
    [(MOBILEVLM_1_7B, 219, 1.674), (MOBILEVLM_7B, 291, 7.063)],
    ids=["1.7B", "7B"],
)
def test_the_published_sizes_have_the_published_tensors(sizes: Sizes, num_language: int, billions: float) -> None:
    assert len(language_shapes(sizes)) == num_language
    assert len(vision_shapes(sizes)) == 391
    assert len(projector_shapes(sizes)) == 6
    with torch.device("meta"):
        model = MobileVlmForConditionalGeneration(MobileVlmConfig.from_dict(published_config(sizes)))
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {published_name(name): shape for name, shape in own.items()} == tensor_shapes(sizes)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    mapping = get_model_conversion_mapping(model, KEY_MAPPING)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    read = {rename_source_key(name, renamings, [])[0]: shape for name, shape in tensor_shapes(sizes).items()}
    assert read == own


def test_the_1_7b_has_144_visual_tokens_of_the_second_last_layer() -> None:
    config = MobileVlmConfig.from_dict(published_config(MOBILEVLM_1_7B))
    assert config.image_seq_length == 144
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.vision_config.hidden_act, config.vision_config.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert (config.text_config.rms_norm_eps, config.text_config.vocab_size) == (1e-6, 32000)


def test_old_buffers_and_distillation_modules_are_left_out_with_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = random_tensors(TINY_STUDENT, seed=1)
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
        "distill_loss.projection.weight": torch.ones(3, 3),
        "model.distill_adapter.bias": torch.ones(3),
    }
    folder = write_published(tmp_path / "model", TINY_STUDENT, tensors={**expected, **old}, form="bin")
    with caplog.at_level(logging.INFO, "betakd_stages"):
        assert_same_bits(own_tensors(load_model(folder)), expected)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("betakd_stages")] == [
        "left out 4 tensors that are no part of the model, such as distill_loss.projection.weight"
    ]


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in random_tensors(TINY_STUDENT, seed=1).items() if key != name}


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path: Path) -> None:
    tensors = without("model.mm_projector.peg.peg.0.bias")
    folder = write_published(tmp_path / "model", TINY_STUDENT, tensors=tensors)
    with pytest.raises(ModelError, match=r"lacks 1 tensors, such as model.multi_modal_projector.position.bias"):
        load_model(folder)


def test_a_checkpoint_with_a_foreign_tensor_is_refused(tmp_path: Path) -> None:
    tensors = {**random_tensors(TINY_STUDENT, seed=1), "model.mm_projector.extra": torch.ones(1)}
    folder = write_published(tmp_path / "model", TINY_STUDENT, tensors=tensors)
    with pytest.raises(ModelError, match="holds besides the model's 1 tensors, such as model.mm_projector.extra"):
        load_model(folder)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", TINY_STUDENT, tensors=random_tensors(TINY_TEACHER, seed=1))
    with pytest.raises(ModelError, match="the checkpoint in .* (of another shape|besides the model's)"):
        load_model(folder)


class Malicious:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('this code must never run')",))


def test_a_bin_file_with_code_inside_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {**random_tensors(TINY_STUDENT, seed=1), "code": Malicious()}
    folder = write_published(tmp_path / "model", TINY_STUDENT, tensors=tensors, form="bin")
    with pytest.raises(ModelError, match="the model in .* cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_cut_off_file_is_refused(tmp_path: Path, form: str) -> None:
    folder = write_published(tmp_path / "model", TINY_STUDENT, form=form)
    file = next(path for path in folder.iterdir() if path.suffix == f".{form}")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="the model in .* cannot be loaded"):
        load_model(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", TINY_STUDENT)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model in .* cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mm_projector_type": "ldpnet"},
            "mm_projector_type 'ldpnet': this loader reads MobileVLM V2, whose .*v2'",
        ),
        ({"vision_tower_type": "siglip"}, "vision_tower_type 'siglip': .* is 'clip'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch': .* is 'patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True: .* is False"),
        ({"mm_use_im_patch_token": True}, "mm_use_im_patch_token True: .* is False"),
        ({"mm_hidden_size": 99}, "mm_hidden_size 99, its vision tower is 16 wide: make them equal"),
    ],
)
def test_a_model_of_another_design_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_published(tmp_path / "model", TINY_STUDENT, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_an_unknown_tower_without_its_sizes_is_refused(tmp_path: Path) -> None:
    config = published_config(TINY_STUDENT)
    del config["vision_config"]
    with pytest.raises(ModelError, match="names the vision tower 'tiny-clip', whose sizes are not known: expected 'op"):
        MobileVlmConfig.from_dict(config)


def test_an_odd_number_of_patches_is_refused() -> None:
    tower = {**published_config(TINY_STUDENT)["vision_config"], "image_size": 18}
    with pytest.raises(ModelError, match="gives 3 x 3 patches: the projector averages 2 x 2 of them and needs"):
        MobileVlmConfig.from_dict(published_config(TINY_STUDENT, vision_config=tower))


def test_a_tokenizer_larger_than_the_head_is_refused(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", TINY_STUDENT, vocab_size=400)
    with pytest.raises(ModelError, match="the tokenizer has 420 tokens, the model 400 rows: they do not belong"):
        load_model(folder)

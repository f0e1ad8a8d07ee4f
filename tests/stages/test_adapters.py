"""LoRA and DoRA students: gradients against the full model's, merged export, resume, and what is refused."""

import copy
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tests.stages.test_training import INSTANCE, TRAINING, Interrupt, assert_same_run
from tests.world import World
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from betakd_cache import open_cache
from betakd_stages.data import load_samples
from betakd_stages.distillation.dataset import EncodedSamples, make_collator
from betakd_stages.distillation.distiller import Distiller, load_trained, save_trained
from betakd_stages.distillation.run import distill
from betakd_stages.errors import ConfigError
from betakd_stages.features import FeatureStatistics
from betakd_stages.models.adapters import add_adapter, base_placement, merge_adapter
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.models.parts import freeze, parameters_by_part
from betakd_stages.models.quantised import dequantise
from betakd_stages.objective_building import build_objective
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings
from betakd_stages.settings.adapters import AdapterSettings

RANK, ALPHA = 4, 6
SCALE = ALPHA / RANK


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def adapted_student(world: World, precision: str = "fp32", **adapter: Any) -> LoadedModel:
    """A student with adapters that are not zero, as in the middle of training."""
    settings = AdapterSettings(**{"kind": "lora", "rank": RANK, "alpha": ALPHA, **adapter})
    student = load_model(world.student, placement=base_placement(settings, precision))
    freeze(student.model, train_vision_tower=False, train_projector=True)
    add_adapter(student.model, settings)
    for name, parameter in student.model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.1)
    return student


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def batch_of(world: World, student: LoadedModel) -> dict[str, Any]:
    samples = load_samples(world.data)
    dataset = EncodedSamples(samples, student.encoder, None)
    collate = make_collator(student.encoder, open_cache(world.cache), np.arange(len(samples)))
    return collate([dataset[index] for index in range(8)])


def inputs_of(world: World, student: LoadedModel) -> dict[str, Tensor]:
    batch = batch_of(world, student)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}


def instance_weighted(world: World, student: LoadedModel) -> Distiller:
    """Labels, forward KL and features, weighted per sample by a network that is not at its start."""
    sizes = dict.fromkeys(("vision", "prompt"), student.model.config.text_config.hidden_size)
    manifest = open_cache(world.cache).manifest
    objective = build_objective(
        energies=[("fkl", {})],
        features=["vision", "prompt"],
        weighting="instance",
        weighting_inputs=["teacher_entropy", "margin"],
        teacher_features=feature_statistics(world),
        student_feature_sizes=sizes,
    )
    for parameter in objective.weighting.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Distiller(student.model, objective, student.encoder.vocabulary_size, manifest)


def feature_statistics(world: World) -> dict[str, Any]:
    held = open_cache(world.cache).manifest.feature_statistics
    return {
        name: FeatureStatistics(torch.from_numpy(each.mean).float(), torch.from_numpy(each.deviation).float())
        for name, each in held.items()
    }


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def full_gradients(distiller: Distiller, batch: dict[str, Any]) -> dict[str, Tensor]:
    """dL/dW of every adapted weight, of the model whose weights are W + scale B A and that knows no adapter."""
    adapted = adapted_layers(distiller.student)
    products = {
        name: SCALE * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        for name, layer in adapted.items()
    }
    plain = copy.deepcopy(distiller)
    dequantise(plain.student)
    for name, product in products.items():
        linear = adapted_layers(plain.student)[name].get_base_layer()
        linear.weight.data += product
        linear.weight.requires_grad_(True)
        plain.student.set_submodule(name, linear)
    plain(batch).total.backward()
    weights = dict(plain.student.named_parameters())
    return {name: gradient_of(weights[f"{name}.weight"]) for name in products}


@pytest.mark.parametrize(
    "adapter",
    [{"kind": "lora"}, *({"kind": "qlora", "double_quantisation": double} for double in (False, True))],
    ids=["lora", "qlora", "qlora with scales in 8 bits"],
)
def test_gradients_of_the_adapters_are_the_full_models_projected_on_them(world: World, adapter: dict[str, Any]) -> None:
    """dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, for the whole objective, in every adapted layer."""
    student = adapted_student(world, **adapter)
    distiller = instance_weighted(world, student)
    batch = batch_of(world, student)
    distiller(batch).total.backward()
    layers = adapted_layers(student.model)
    assert len(layers) == 14
    for name, full in full_gradients(distiller, batch).items():
        down, up = layers[name].lora_A["default"].weight, layers[name].lora_B["default"].weight
        assert full.abs().max() > 1e-3
        torch.testing.assert_close(up.grad, SCALE * full @ down.T, atol=1e-5, rtol=1e-4, msg=name)
        torch.testing.assert_close(down.grad, SCALE * up.T @ full, atol=1e-5, rtol=1e-4, msg=name)


def test_only_adapters_and_the_projector_get_a_gradient(world: World) -> None:
    student = adapted_student(world)
    parts = parameters_by_part(student.model)
    assert all("lora_" in name for name, parameter in parts["language"].items() if parameter.requires_grad)
    assert sum(parameter.requires_grad for parameter in parts["language"].values()) == 28
    assert all(parameter.requires_grad for parameter in parts["projector"].values())
    assert not any(parameter.requires_grad for parameter in parts["vision tower"].values())
    assert not any("lora_" in name for part in ("projector", "vision tower") for name in parts[part])


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_merged_model_gives_the_adapted_ones_logits(world: World, kind: str) -> None:
    student = adapted_student(world, kind=kind)
    plain = load_model(world.student).model
    inputs = inputs_of(world, student)
    model = student.model.eval()
    with torch.inference_mode():
        adapted = model(**inputs).logits
        merge_adapter(model)
        merged = model(**inputs).logits
        before = plain(**inputs).logits
    assert (merged - adapted).abs().max() < 1e-4
    assert (merged - before).abs().max() > 0.1
    assert not hasattr(model, "peft_config")
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_dropout_of_the_adapters_is_there_in_training_alone(world: World) -> None:
    student = adapted_student(world, dropout=0.5)
    distiller, batch = instance_weighted(world, student), batch_of(world, student)
    assert distiller.eval()(batch).total == distiller(batch).total
    assert distiller.train()(batch).total != distiller(batch).total


def run_settings(world: World, **changes: Any) -> DistillSettings:
    adapter = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}
    training = {**TRAINING, "learning_rate": 1e-2}
    common = {"student": str(world.student), "cache": str(world.cache), "data": world.data, "training": training}
    return DistillSettings.model_validate({**common, **INSTANCE, "adapter": adapter, **changes})


# peft's own constructor asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_run_leaves_the_merged_model_and_the_adapter_that_makes_it(world: World, tmp_path: Path, kind: str) -> None:
    """With the projector frozen the two are the same model; transformers and peft alone load them."""
    out = tmp_path / "run"
    training = {**TRAINING, "steps": 4, "learning_rate": 1e-2, "train_projector": False}
    objective = {"energies": ["fkl"], "features": ["prompt"]}
    adapter = {"kind": kind, "rank": 4, "targets": ["q_proj", "v_proj", "layers.1.mlp.up_proj"]}
    settings = run_settings(world, adapter=adapter, training=training, objective=objective)
    distill(settings, out, progress=SilentProgress())
    before = load_file(world.student / "model.safetensors")
    merged = AutoModelForImageTextToText.from_pretrained(out / "model")
    after = load_file(out / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    ends = ["0.self_attn.q_proj", "0.self_attn.v_proj", "1.mlp.up_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"]
    assert all("language_model" in name for name in changed)
    assert sorted(name.partition("layers.")[2] for name in changed) == [f"{end}.weight" for end in ends]
    base = AutoModelForImageTextToText.from_pretrained(world.student)
    adapted = PeftModel.from_pretrained(base, str(out / "adapter"))
    inputs = inputs_of(world, load_model(world.student))
    with torch.inference_mode():
        assert (merged(**inputs).logits - adapted(**inputs).logits).abs().max() < 1e-4
    config = json.loads((out / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(world.student)
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (4, 32, kind == "dora")


def test_a_run_trains_adapters_and_projector_and_leaves_tower_head_and_norms(world: World, tmp_path: Path) -> None:
    summary = distill(run_settings(world), tmp_path / "run", progress=SilentProgress())
    assert math.isfinite(summary.final_metrics["objective"])
    before = load_file(world.student / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, value in before.items():
        adapted = "language_model" in name and "proj" in name
        assert torch.equal(value, after[name]) != (adapted or "multi_modal_projector" in name), name


def test_an_interrupted_run_ends_as_the_uninterrupted_one(world: World, tmp_path: Path) -> None:
    distill(run_settings(world), tmp_path / "whole", progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        distill(run_settings(world), tmp_path / "cut", progress=Interrupt(7))
    distill(run_settings(world), tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    for name, value in load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "cut" / "adapter" / "adapter_model.safetensors")[name]), name


def test_a_checkpoint_holds_what_trains_and_no_more(world: World, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(run_settings(world), tmp_path / "cut", progress=Interrupt(5))
    held = load_file(tmp_path / "cut" / "checkpoints" / "checkpoint-4" / "student.safetensors")
    trained = {name for name, value in adapted_student(world).model.named_parameters() if value.requires_grad}
    assert held.keys() == trained
    assert any("multi_modal_projector" in name for name in held)


def test_a_checkpoint_that_lacks_what_trains_is_not_loaded(world: World, tmp_path: Path) -> None:
    student = adapted_student(world, targets=("q_proj",)).model
    save_trained(student, tmp_path / "student.safetensors")
    load_trained(student, tmp_path / "student.safetensors")
    with pytest.raises(RuntimeError, match=r"the tensors lack 4 of what trains, such as .*v_proj\.lora_A"):
        load_trained(adapted_student(world, targets=("q_proj", "v_proj")).model, tmp_path / "student.safetensors")


def test_a_target_that_is_no_layer_of_the_language_model_is_refused(world: World) -> None:
    with pytest.raises(ConfigError) as caught:
        adapted_student(world, targets=("q_proj", "linear_1"))
    assert str(caught.value) == (
        "adapter.targets has 'linear_1', which is no linear layer of the language model: it has q_proj, k_proj, "
        "v_proj, o_proj, gate_proj, up_proj, down_proj"
    )


def test_adapters_without_peft_are_refused_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    with pytest.raises(ConfigError) as caught:
        distill(run_settings(world), tmp_path / "run", progress=SilentProgress())
    assert str(caught.value) == (
        "adapter lora needs the package peft: install it (pip install 'betakd-pipe[lora]'), or leave adapter out to "
        "train the whole language model"
    )
    assert not (tmp_path / "run").exists()


def test_no_targets_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="targets is empty: name linear layers of the language model, or leave"):
        AdapterSettings(kind="lora", targets=())

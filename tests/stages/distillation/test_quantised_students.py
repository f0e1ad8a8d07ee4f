"""QLoRA students: 4-bit weights against NF4's definition, merged export, resume, and what is refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.torch import load_file
from tests.stages.mobilevlm.published import TINY_STUDENT, write_published
from tests.stages.models.world import folder_of
from tests.stages.test_adapters import adapted_student, inputs_of, run_settings
from tests.stages.test_training import TRAINING, Interrupt, assert_same_run
from tests.world import World
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel

from betakd_stages.distillation.dry_run import dry_run
from betakd_stages.distillation.run import distill
from betakd_stages.distillation.student import load_student
from betakd_stages.errors import ConfigError
from betakd_stages.models.adapters import add_adapter, base_placement, merge_adapter
from betakd_stages.models.loading import load_model
from betakd_stages.models.mobilevlm.model import MobileVlmForConditionalGeneration
from betakd_stages.models.parts import freeze
from betakd_stages.models.placement import COMPUTE_TYPES
from betakd_stages.models.quantised import dequantise
from betakd_stages.progress import SilentProgress
from betakd_stages.settings.adapters import AdapterSettings

QLORA = {"kind": "qlora", "rank": 4, "alpha": 8, "dropout": 0.1}
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""The sixteen numbers of Dettmers et al., QLoRA, appendix E."""
BLOCK = 64


def as_nf4(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of weights, block by block: the nearest of the sixteen numbers, times the block's largest."""
    blocks = weights.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs((blocks / scales)[..., None] - NF4).argmin(axis=-1)
    return (NF4[nearest] * scales).reshape(weights.shape)


def quantised(folder: Path, *, double: bool = False, precision: str = "fp32") -> PreTrainedModel:
    settings = AdapterSettings(kind="qlora", double_quantisation=double)
    return load_model(folder, placement=base_placement(settings, precision)).model


def weights_of(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def test_linear_layers_of_the_language_model_are_nf4_and_all_else_is_as_it_was(world: World) -> None:
    model = quantised(world.student)
    packed = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(packed) == 14
    assert all(name.startswith("model.language_model.layers.") for name in packed)
    assert dequantise(model)
    plain, meant = weights_of(load_model(world.student).model), weights_of(model)
    assert meant.keys() == plain.keys()
    for name, before in plain.items():
        expected = as_nf4(before) if name.removesuffix(".weight") in packed else before
        np.testing.assert_allclose(meant[name], expected, atol=1e-6, err_msg=name)
        assert (name.removesuffix(".weight") in packed) == (np.abs(meant[name] - before).max() > 1e-3)


def test_scales_in_8_bits_change_a_weight_by_a_hundredth_of_its_blocks_largest(world: World) -> None:
    single, double = quantised(world.student), quantised(world.student, double=True)
    assert dequantise(single)
    assert dequantise(double)
    one, other = weights_of(single), weights_of(double)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    scales = np.abs(one[name]).reshape(-1, BLOCK).max(axis=1, keepdims=True)
    shares = np.abs(one[name] - other[name]).reshape(-1, BLOCK) / scales
    assert 0 < shares.max() < 0.01


def test_what_computed_in_bf16_is_in_fp32_again_biases_included() -> None:
    folder = folder_of("qwen2_5_vl")
    model = quantised(folder, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert dequantise(model)
    types = {name: value.dtype for name, value in model.state_dict().items()}
    assert set(types.values()) == {torch.float32}
    assert any(name.endswith("q_proj.bias") for name in types)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_adapters_train_in_fp32_whatever_the_4_bit_layers_compute_in(world: World, precision: str) -> None:
    training = {**TRAINING, "precision": precision}
    model = load_student(run_settings(world, adapter=QLORA, training=training)).model
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    computing = {module.compute_dtype for module in model.modules() if isinstance(module, Linear4bit)}
    assert computing == {COMPUTE_TYPES[precision]}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_the_merged_model_gives_the_logits_that_were_trained(world: World, precision: str, tolerance: float) -> None:
    """In bf16 the 4-bit model itself rounds; the merged one, in fp32, does not."""
    student = adapted_student(world, precision, kind="qlora")
    model, inputs = student.model.eval(), inputs_of(world, student)
    plain = load_model(world.student).model
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            adapted = model(**inputs).logits.float()
        before = plain(**inputs).logits
        merge_adapter(model)
        merged = model(**inputs).logits
    assert (merged - adapted).abs().max() < tolerance
    assert (merged - before).abs().max() > 3 * tolerance
    assert type(model.get_decoder().layers[0].mlp.up_proj) is nn.Linear
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not hasattr(model, "peft_config")
    assert not hasattr(model.config, "quantization_config")


# peft's own constructor asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_run_leaves_a_plain_model_that_the_4_bit_student_and_the_adapter_make(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    training = {**TRAINING, "steps": 4, "learning_rate": 1e-2, "train_projector": False}
    objective = {"energies": ["fkl"], "features": ["prompt"]}
    adapter = {"kind": "qlora", "rank": 4, "targets": ["q_proj", "v_proj"]}
    distill(
        run_settings(world, adapter=adapter, training=training, objective=objective), out, progress=SilentProgress()
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (world.student, out / "model"))
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    assert "quantization_config" not in json.loads((out / "model" / "config.json").read_text(encoding="utf-8"))
    whole = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=whole,
    )
    base = AutoModelForImageTextToText.from_pretrained(world.student, quantization_config=config)
    adapted = PeftModel.from_pretrained(base, str(out / "adapter"))
    merged = AutoModelForImageTextToText.from_pretrained(out / "model")
    inputs = inputs_of(world, load_model(world.student))
    with torch.inference_mode():
        assert (merged(**inputs).logits - adapted(**inputs).logits).abs().max() < 1e-4


def test_an_interrupted_run_ends_as_the_uninterrupted_one_and_its_checkpoints_hold_no_packed_weights(
    world: World, tmp_path: Path
) -> None:
    settings = run_settings(world, adapter=QLORA)
    distill(settings, tmp_path / "whole", progress=SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        distill(settings, tmp_path / "cut", progress=Interrupt(7))
    held = load_file(tmp_path / "cut" / "checkpoints" / "checkpoint-4" / "student.safetensors")
    trained = {
        name for name, value in adapted_student(world, kind="qlora").model.named_parameters() if value.requires_grad
    }
    assert held.keys() == trained
    distill(settings, tmp_path / "cut", progress=SilentProgress())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_dry_run_counts_every_weight_and_its_bytes_as_they_lie(world: World) -> None:
    lora, qlora = (
        dry_run(run_settings(world, adapter={"kind": kind, "rank": 4}), progress=SilentProgress())
        for kind in ("lora", "qlora")
    )
    assert qlora.num_parameters == lora.num_parameters
    assert qlora.num_trained == lora.num_trained
    assert qlora.optimizer_bytes == lora.optimizer_bytes
    decoder = load_model(world.student).model.get_decoder()
    packed = sum(module.weight.numel() for module in decoder.modules() if isinstance(module, nn.Linear))
    assert lora.weights_bytes - qlora.weights_bytes == packed * 4 - packed // 2


def test_a_mobilevlm_student_is_merged_into_its_published_layout(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "student", TINY_STUDENT)
    settings = AdapterSettings(kind="qlora", rank=2)
    model: Any = load_model(folder, placement=base_placement(settings, "fp32")).model
    freeze(model, train_vision_tower=False, train_projector=True)
    add_adapter(model, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        merge_adapter(model)
    model.save_pretrained(tmp_path / "merged")
    published, written = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "merged"))
    assert written.keys() == published.keys()
    again = MobileVlmForConditionalGeneration.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=1e-4, rtol=0)


def test_weights_are_not_repacked_in_evaluation_where_the_cpu_has_bfloat16(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repacked layer gives its input no gradient, and this one comes after an evaluation."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model: Any = quantised(world.student)
    layer = model.get_decoder().layers[0].mlp.up_proj
    rows = torch.ones(2, layer.in_features)
    with torch.inference_mode():
        expected = layer.eval()(rows)
    rows.requires_grad_()
    after = layer.train()(rows)
    after.sum().backward()
    assert torch.equal(after, expected)
    assert rows.grad is not None
    assert rows.grad.abs().max() > 0


def test_qlora_without_bitsandbytes_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    without = lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ConfigError) as caught:
        distill(run_settings(world, adapter=QLORA), tmp_path / "run", progress=SilentProgress())
    assert str(caught.value) == (
        "adapter qlora needs the package bitsandbytes: install it (pip install 'betakd-pipe[qlora]'), or use adapter "
        "lora"
    )
    assert not (tmp_path / "run").exists()

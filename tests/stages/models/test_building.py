"""LLaVA-Qwen out of its parts: names, shapes and numbers of the published sizes, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.stages.models.parts import save_clip, save_language_model, save_siglip
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from betakd_pipe.cli import main
from betakd_stages.errors import ConfigError, ModelError
from betakd_stages.models.building import build_model, join
from betakd_stages.models.loading import load_model
from betakd_stages.models.parts import parameters_by_part

COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_hidden_layers": 24},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_hidden_layers": 28},
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_hidden_layers": 36},
}
"""What config.json of the published Qwen2.5 models says, where it matters."""
PUBLISHED_PARAMETERS = {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "3B": 3_085_938_688}
PUBLISHED_TENSORS = {"0.5B": 290, "1.5B": 338, "3B": 434}
CLIP_LARGE_336 = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)


def language_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a Qwen2.5 checkpoint with tied embeddings, written out."""
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (rows, width), "norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"layers.{layer}.{name}": shape
            for name, shape in {
                "self_attn.q_proj.weight": (width, width),
                "self_attn.q_proj.bias": (width,),
                "self_attn.k_proj.weight": (keys, width),
                "self_attn.k_proj.bias": (keys,),
                "self_attn.v_proj.weight": (keys, width),
                "self_attn.v_proj.bias": (keys,),
                "self_attn.o_proj.weight": (width, width),
                "mlp.gate_proj.weight": (inner, width),
                "mlp.up_proj.weight": (inner, width),
                "mlp.down_proj.weight": (width, inner),
                "input_layernorm.weight": (width,),
                "post_attention_layernorm.weight": (width,),
            }.items()
        }
    return shapes


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {
        "language": save_language_model(folder / "language", seed=1),
        "clip": save_clip(folder / "clip", seed=2),
        "siglip": save_siglip(folder / "siglip", seed=3),
    }


@pytest.fixture
def damaged(parts: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The parts as a test may damage them."""
    return {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in parts.items()}


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_published_size_has_its_tensors_and_parameters(size: str) -> None:
    fields = {**COMMON, **PUBLISHED[size]}
    with torch.device("meta"):
        language, tower = Qwen2ForCausalLM(Qwen2Config(**fields)), CLIPVisionModel(CLIP_LARGE_336)
    model = join(language, tower, image_token_id=151655, seed=0)
    named = dict(model.named_parameters())  # a tied one once
    prefix = "model.language_model."
    found = {name.removeprefix(prefix): tuple(p.shape) for name, p in named.items() if name.startswith(prefix)}
    assert found == language_shapes(fields)
    assert len(found) == PUBLISHED_TENSORS[size]
    width = fields["hidden_size"]
    assert {name: tuple(named[name].shape) for name in named if "projector" in name} == {
        "model.multi_modal_projector.linear_1.weight": (width, 1024),
        "model.multi_modal_projector.linear_1.bias": (width,),
        "model.multi_modal_projector.linear_2.weight": (width, width),
        "model.multi_modal_projector.linear_2.bias": (width,),
    }
    counts = {part: sum(p.numel() for p in ps.values()) for part, ps in parameters_by_part(model).items()}
    assert counts == {
        "language": PUBLISHED_PARAMETERS[size],
        "projector": width * 1024 + width + width * width + width,
        "vision tower": 303_507_456,
    }
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.image_seq_length == 576


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "default"), ("siglip", "full")])
def test_the_parts_are_in_the_built_model_bit_by_bit(
    parts: dict[str, Path], tmp_path: Path, tower: str, strategy: str
) -> None:
    built = build_model(parts["language"], parts[tower], tmp_path / "model", seed=5)
    loaded = load_model(built.folder)
    assert loaded.model.config.vision_feature_select_strategy == strategy
    assert loaded.encoder.num_image_tokens == 16
    state = loaded.model.state_dict()
    for name, tensor in load_file(parts["language"] / "model.safetensors").items():
        assert torch.equal(state[f"model.language_model.{name.removeprefix('model.')}"], tensor)
    compared = 0
    for name, tensor in load_file(parts[tower] / "model.safetensors").items():
        own = f"model.vision_tower.{name.removeprefix('vision_model.')}"
        if own in state:
            compared += 1
            assert torch.equal(state[own], tensor)
    assert compared == sum(name.startswith("model.vision_tower.") for name in state)
    assert loaded.model.lm_head.weight is loaded.model.model.language_model.embed_tokens.weight
    assert sum(built.num_parameters.values()) == sum(p.numel() for p in loaded.model.parameters())


def test_the_projector_is_drawn_from_the_seed(parts: dict[str, Path], tmp_path: Path) -> None:
    def projector(out: str, seed: int) -> torch.Tensor:
        folder = build_model(parts["language"], parts["clip"], tmp_path / out, seed=seed).folder
        return load_model(folder).model.model.multi_modal_projector.linear_1.weight

    before = torch.random.get_rng_state()
    first, again, other = projector("first", 1), projector("again", 1), projector("other", 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_transformers_own_classes_load_a_built_model_and_encode_alike(parts: dict[str, Path], tmp_path: Path) -> None:
    folder = build_model(parts["language"], parts["clip"], tmp_path / "model").folder
    ours = load_model(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in ours.model.state_dict().items())
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    image = Image.linear_gradient("L").convert("RGB").resize((30, 20))
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    text = processor.apply_chat_template([question], add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|image_pad|>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    batch = processor(images=image, text=text, return_tensors="pt")
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == 16
    assert len(AutoTokenizer.from_pretrained(folder)) == len(AutoTokenizer.from_pretrained(parts["language"]))


def test_the_command_says_how_large_the_parts_are(
    parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    given = ["--language-model", str(parts["language"]), "--vision-tower", str(parts["siglip"]), "--out", str(out)]
    assert main(["build-model", *given]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: language 0.0 M, projector 0.0 M, vision tower 0.0 M parameters")
    assert main(["build-model", *given]) == 2
    assert f"{out} is not empty: choose another --out, or remove it" in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_not_written_to(parts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty: choose another --out, or remove it"):
        build_model(parts["language"], parts["clip"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_tokenizer_without_chatml_or_the_image_token_is_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lacks '<picture>': give a language model with ChatML's tokens, such as Qwen"):
        build_model(parts["language"], parts["clip"], tmp_path / "model", image_token="<picture>")


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    small = save_language_model(tmp_path / "small", num_rows=260)
    with pytest.raises(ModelError, match="the tokenizer has 269 tokens, the model 260 rows: they do not belong"):
        build_model(small, parts["clip"], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_no_tower_is_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is of model type 'qwen2': a vision tower is CLIP or SigLIP, such as openai"):
        build_model(parts["language"], parts["language"], tmp_path / "model")
    with pytest.raises(ModelError, match="the vision tower in .*absent cannot be loaded"):
        build_model(parts["language"], tmp_path / "absent", tmp_path / "model")


def test_what_is_no_language_model_is_refused(parts: dict[str, Path], damaged: dict[str, Path], tmp_path: Path) -> None:
    (damaged["language"] / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="the language model in .* cannot be loaded"):
        build_model(damaged["language"], parts["clip"], tmp_path / "model")
    (damaged["language"] / "tokenizer.json").write_text("no tokenizer", encoding="utf-8")
    with pytest.raises(ModelError, match="the tokenizer of .*language cannot be read \\(.*: copy it again"):
        build_model(damaged["language"], parts["clip"], tmp_path / "model")


def test_a_tower_that_lacks_weights_or_an_image_processor_is_refused(
    parts: dict[str, Path], damaged: dict[str, Path], tmp_path: Path
) -> None:
    (damaged["clip"] / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="clip lacks an image processor \\("):
        build_model(parts["language"], damaged["clip"], tmp_path / "model")
    config = json.loads((damaged["clip"] / "config.json").read_text(encoding="utf-8"))
    (damaged["clip"] / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}), encoding="utf-8")
    with pytest.raises(ModelError, match="lacks 16 tensors, such as .*layers.3"):
        build_model(parts["language"], damaged["clip"], tmp_path / "model")


def test_an_image_processor_for_another_size_is_refused(
    parts: dict[str, Path], damaged: dict[str, Path], tmp_path: Path
) -> None:
    CLIPImageProcessorPil(size={"shortest_edge": 8}, do_center_crop=False).save_pretrained(damaged["clip"])
    with pytest.raises(ModelError, match="makes images of 16 x 8 pixels, the vision tower takes 16 x 16: correct"):
        build_model(parts["language"], damaged["clip"], tmp_path / "model")

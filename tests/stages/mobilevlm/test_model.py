"""The model against an independent assembly: transformers' CLIP and Llama, and the projector's formula in NumPy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.stages.mobilevlm.published import TINY_TEACHER, published_config, random_tensors, write_published
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from betakd_stages.models.loading import load_model
from betakd_stages.models.mobilevlm.model import MobileVlmForConditionalGeneration
from betakd_stages.models.mobilevlm.processor import MobileVlmProcessor

TENSORS = random_tensors(TINY_TEACHER, seed=1)
IMAGE = 0  # the placeholder's id
TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = load_model(write_published(tmp_path_factory.mktemp("world") / "model", TINY_TEACHER, seed=1))
    assert isinstance(loaded.model, MobileVlmForConditionalGeneration)
    return loaded.model.eval()


def projected(patches: NDArray[np.float64]) -> NDArray[np.float64]:
    """LDPv2's formula [16, 16] -> [4, 32]: linear, GELU, linear, 2 x 2 means, plus a depthwise 3 x 3 convolution."""
    weights = {name.split("mm_projector.")[1]: TENSORS[name].double().numpy() for name in TENSORS if "mm_proj" in name}
    inner = patches @ weights["mlp.mlp.0.weight"].T + weights["mlp.mlp.0.bias"]
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    grid = (inner @ weights["mlp.mlp.2.weight"].T + weights["mlp.mlp.2.bias"]).reshape(4, 4, -1)
    pooled = (grid[0::2, 0::2] + grid[0::2, 1::2] + grid[1::2, 0::2] + grid[1::2, 1::2]) / 4
    framed = np.pad(pooled, ((1, 1), (1, 1), (0, 0)))
    kernel = weights["peg.peg.0.weight"][:, 0]  # [32, 3, 3]
    convolved = weights["peg.peg.0.bias"] + sum(
        framed[row : row + 2, column : column + 2] * kernel[:, row, column] for row in range(3) for column in range(3)
    )
    return (pooled + convolved).reshape(4, -1)


def assembled_logits(ids: list[int], pixels: Tensor | None) -> Tensor:
    """Logits [L, V] from transformers' own CLIP and Llama, with the visual tokens put in by hand."""
    config = published_config(TINY_TEACHER)
    tower = CLIPVisionModel(CLIPVisionConfig(**config["vision_config"])).eval()
    prefix = next(iter(tower.state_dict())).split("embeddings")[0]  # `vision_model.` before transformers 5
    tower.load_state_dict({prefix + k.removeprefix(TOWER): v for k, v in TENSORS.items() if k.startswith(TOWER)})
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    llama = LlamaForCausalLM(LlamaConfig(**{key: config[key] for key in fields}, rms_norm_eps=1e-6)).eval()
    llama.load_state_dict({k: v for k, v in TENSORS.items() if not k.startswith(("model.vision", "model.mm_"))})
    with torch.no_grad():
        embeddings = llama.model.embed_tokens(torch.tensor(ids)).clone()
        if pixels is not None:
            patches = tower(pixels[None], output_hidden_states=True).hidden_states[-2][0, 1:]
            visual = torch.from_numpy(projected(patches.double().numpy())).float()
            embeddings[[place for place, id in enumerate(ids) if id == IMAGE]] = visual
        return llama(inputs_embeds=embeddings[None]).logits[0]


def pixels(seed: int) -> Tensor:
    return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(seed))


def test_logits_are_those_of_an_independent_assembly(model: Any) -> None:
    ids = [1, 300, 301, *[IMAGE] * 4, 302, 303, 304]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels(1)[None]).logits[0]
    torch.testing.assert_close(logits, assembled_logits(ids, pixels(1)), atol=1e-5, rtol=0)
    assert logits.std() > 0.1  # the weights make a difference


def test_a_batch_of_images_and_text_gives_what_each_sample_gives_alone(
    model: Any,
) -> None:
    rows = [[1, *[IMAGE] * 4, 300, 301, 302], [1, 303, 304], [1, 305, *[IMAGE] * 4, 306]]
    images = [pixels(1), None, pixels(2)]
    longest = max(map(len, rows))
    for side in ("left", "right"):
        width = [longest - len(row) for row in rows]
        left = [count if side == "left" else 0 for count in width]
        padded = [
            [2] * before + row + [2] * (longest - len(row) - before) for before, row in zip(left, rows, strict=True)
        ]
        mask = [
            [int(before <= place < before + len(row)) for place in range(longest)]
            for before, row in zip(left, rows, strict=True)
        ]
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                position_ids=(torch.tensor(mask).cumsum(dim=1) - 1).clamp(min=0),
                pixel_values=torch.stack([image for image in images if image is not None]),
            )
        for number, (row, image) in enumerate(zip(rows, images, strict=True)):
            own = output.logits[number, left[number] : left[number] + len(row)]
            torch.testing.assert_close(own, assembled_logits(row, image), atol=1e-5, rtol=0)


def test_generation_with_the_cache_is_greedy_decoding_without_one(model: Any) -> None:
    prompts = torch.tensor([[1, *[IMAGE] * 4, 300, 301], [2, 2, 1, 303, 304, 305, 306]])
    mask = torch.ones_like(prompts)
    mask[1, :2] = 0
    generated = model.generate(
        input_ids=prompts,
        attention_mask=mask,
        pixel_values=pixels(1)[None],
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=2,
    )
    for row, start, image in ((0, 0, pixels(1)), (1, 2, None)):
        ids = prompts[row, start:].tolist()
        for _ in range(6):
            ids.append(int(assembled_logits(ids, image)[-1].argmax()))
        assert generated[row, start:].tolist() == ids


def test_the_tower_can_be_frozen_and_the_projector_and_language_model_trained(
    model: Any,
) -> None:
    model.model.vision_tower.requires_grad_(False)
    ids = torch.tensor([[1, *[IMAGE] * 4, 300, 301]])
    model(input_ids=ids, pixel_values=pixels(1)[None], labels=ids).loss.backward()
    without_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without_gradient == {name for name, _ in model.named_parameters() if "vision_tower" in name}
    model.zero_grad()
    model.requires_grad_(True)


def test_the_example_of_the_documentation_answers_in_bfloat16(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", TINY_TEACHER)
    model = MobileVlmForConditionalGeneration.from_pretrained(folder, dtype="bfloat16")
    processor = MobileVlmProcessor.from_pretrained(folder)
    question: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    batch = processor(images=Image.new("RGB", (30, 20)), text=processor.apply_chat_template([question]))
    answer = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert model.dtype == torch.bfloat16
    assert answer.shape[1] == batch["input_ids"].shape[1] + 3

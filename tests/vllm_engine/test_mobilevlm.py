"""MobileVLM V2 in vLLM: the caches that transformers gives, and the answers that vLLM writes by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.stages.mobilevlm.published import TINY_TEACHER, Sizes, write_published
from tests.stages.photos import NUM_SAMPLES, write_photos
from tests.vllm_engine.engine_world import assert_same_caches, command

from betakd_cache import open_cache
from betakd_stages.models.mobilevlm.model import MobileVlmForConditionalGeneration
from betakd_stages.models.mobilevlm.processor import MobileVlmProcessor
from betakd_stages.teachers.vllm.plugin import register

TEACHER = Sizes(64, 96, 2, 2, 432, 512, vision_hidden=64, vision_layers=3, vision_heads=2, image=24, patch=6)
"""Heads of 32: vLLM's attention on a CPU has no smaller ones."""
NUM_IMAGE_TOKENS = 4
IMAGE_SIZES = ((30, 20), (17, 40), (24, 24))
CONVERSATIONS = (["What is it?"], ["Wie groß  ist es? 日本"], ["What is it?", "A cat.", "Colour?"])
NUM_NEW_TOKENS = 8
pytestmark = pytest.mark.usefixtures("engine_world")  # which sets the environment


@pytest.mark.parametrize("ratio", ["pad", "square"])
def test_vllm_and_transformers_give_the_same_cache_of_images_that_are_not_square(tmp_path: Path, ratio: str) -> None:
    teacher = write_published(tmp_path / "teacher", TEACHER, seed=1, image_aspect_ratio=ratio)
    data = write_photos(tmp_path)
    for backend in ("hf", "vllm"):
        inputs = ["--teacher", str(teacher), "--data", data, "--out", str(tmp_path / backend)]
        assert command("cache-teacher", *inputs, "--backend", backend, "--set", "exact=true", "--top-k", "12") == 0
    assert_same_caches(tmp_path / "hf", tmp_path / "vllm")
    cache = open_cache(tmp_path / "hf")
    features = [cache.record(index).features for index in range(NUM_SAMPLES)]
    vision = np.stack([values["vision"] for values in features if "vision" in values])
    assert len(vision) == NUM_SAMPLES * 2 // 3
    assert vision.std(axis=0).mean() > 0.01  # a hundred times the tolerance between images


def prompt_text(processor: MobileVlmProcessor, texts: list[str]) -> str:
    """A conversation about an image that waits for its next answer."""
    messages: list[Any] = [
        {
            "role": ("user", "assistant")[place % 2],
            "content": [*([] if place else [{"type": "image"}]), {"type": "text", "text": text}],
        }
        for place, text in enumerate(texts)
    ]
    return str(processor.apply_chat_template(messages))


def photo(size: tuple[int, int]) -> Image.Image:
    """Noise, by its size."""
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(size[0]))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def one_placeholder(ids: list[int]) -> list[int]:
    start = ids.index(0)
    return [*ids[: start + 1], *ids[start + NUM_IMAGE_TOKENS :]]


def answers(llm: Any, prompts: list[dict[str, Any]], images: list[Image.Image]) -> list[tuple[list[int], list[int]]]:
    """(ids of the prompt, ids written) of each prompt."""
    from vllm import SamplingParams

    inputs = [{**prompt, "multi_modal_data": {"image": image}} for prompt, image in zip(prompts, images, strict=True)]
    outputs = llm.generate(inputs, SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS), use_tqdm=False)
    return [(list(output.prompt_token_ids), list(output.outputs[0].token_ids)) for output in outputs]


def test_vllm_alone_writes_the_answers_of_transformers_from_text_and_from_ids(tmp_path: Path) -> None:
    from vllm import LLM

    teacher = write_published(tmp_path / "teacher", TEACHER, seed=1, image_aspect_ratio="pad")
    processor = MobileVlmProcessor.from_pretrained(teacher)
    model = MobileVlmForConditionalGeneration.from_pretrained(teacher, dtype="float32").eval()
    texts, images = [prompt_text(processor, turns) for turns in CONVERSATIONS], list(map(photo, IMAGE_SIZES))
    expected = []
    for text, image in zip(texts, images, strict=True):
        batch = processor(images=image, text=text)
        with torch.no_grad():
            written = model.generate(**batch, max_new_tokens=NUM_NEW_TOKENS, do_sample=False, pad_token_id=2)[0]
        prompt_ids = batch["input_ids"][0].tolist()
        expected.append((prompt_ids, written[len(prompt_ids) :].tolist()))
    assert len({tuple(answer) for _, answer in expected}) == len(expected)

    llm = LLM(str(teacher), dtype="float32", max_model_len=TEACHER.context)
    try:
        assert answers(llm, [{"prompt": text} for text in texts], images) == expected
        assert answers(llm, [{"prompt_token_ids": ids} for ids, _ in expected], images) == expected
        single = [{"prompt_token_ids": one_placeholder(ids)} for ids, _ in expected]
        assert answers(llm, single, images) == expected
        assert answers(llm, single, images[::-1]) != expected
    finally:
        llm.llm_engine.engine_core.shutdown()


def test_only_a_folder_of_model_type_mobilevlm_gets_the_class() -> None:
    from vllm import ModelRegistry

    register()
    register()
    assert "MobileVlmForConditionalGeneration" in ModelRegistry.get_supported_archs()
    assert "MobileLlamaForCausalLM" not in ModelRegistry.get_supported_archs()  # text models are published under it


def test_placeholders_of_one_image_become_one(tmp_path: Path) -> None:
    from betakd_stages.teachers.vllm.models.mobilevlm import one_per_image

    assert one_per_image([1, 0, 0, 0, 0, 5, 5, 0], 0, 4) == [1, 0, 5, 5, 0]
    assert one_per_image([0] * 8, 0, 4) == [0, 0]


def test_the_text_of_ids_is_the_one_they_were_made_of(tmp_path: Path) -> None:
    from betakd_stages.teachers.vllm.models.mobilevlm import text_of

    folder = write_published(tmp_path / "teacher", TINY_TEACHER)
    processor = MobileVlmProcessor.from_pretrained(folder)
    for turns in CONVERSATIONS:
        text = prompt_text(processor, turns)
        assert "<image>" in text
        assert text_of(processor.tokenizer(text)["input_ids"], processor.tokenizer) == text

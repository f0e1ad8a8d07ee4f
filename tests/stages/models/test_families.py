"""Every family: tokens, mask, tensors, hidden states, features and greedy answers against its own classes."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.models.families import FAMILIES
from tests.stages.models.world import ALL, SAMPLES, TURNS, folder_of, sample
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor

from betakd_cache import FeatureLayout
from betakd_stages.data.sample import Sample, Turn
from betakd_stages.encoding import IGNORED, EncodedSample, Encoder, model_inputs
from betakd_stages.evaluation.generation import greedy_answers
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import LoadedModel, load_encoder, load_model
from betakd_stages.models.parts import freeze, parameters_by_part

FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"
FOUR = "<image>" * 4
EXPANDED = {
    "llava (CLIP)": ("<|image_pad|>", "<|image_pad|>" * 16, "<|image_pad|>" * 16),
    "llava (SigLIP)": ("<|image_pad|>", "<|image_pad|>" * 16, "<|image_pad|>" * 16),
    # 30 x 20 becomes 32 x 16, 17 x 40 becomes 16 x 40; a token is 8 x 8 pixels.
    "qwen2_5_vl": ("<|image_pad|>", "<|image_pad|>" * 8, "<|image_pad|>" * 10),
    "qwen3_vl": ("<|image_pad|>", "<|image_pad|>" * 8, "<|image_pad|>" * 10),
    # 30 x 20 becomes 2 x 2 tiles, 17 x 40 becomes 2 x 1, of 4 tokens each; then the whole image.
    "smolvlm": (
        "<image>",
        f"{FAKE}<row_1_col_1>{FOUR}{FAKE}<row_1_col_2>{FOUR}\n{FAKE}<row_2_col_1>{FOUR}{FAKE}<row_2_col_2>{FOUR}\n"
        f"\n{FAKE}{GLOBAL}{FOUR}{FAKE}",
        f"{FAKE}<row_1_col_1>{FOUR}\n{FAKE}<row_2_col_1>{FOUR}\n\n{FAKE}{GLOBAL}{FOUR}{FAKE}",
    ),
    "gemma3": ("<start_of_image>", *["\n\n<start_of_image>" + "<image_soft_token>" * 4 + "<end_of_image>\n\n"] * 2),
    # The whole image in 16 tokens; the 2 x 2 tiles of 30 x 20, 8 x 8 patches, without the padding: 6 rows of 8 and a
    # line break each; the 2 x 1 tiles of 17 x 40: 8 rows of 4 and a line break each.
    "llava_onevision": ("<image>", "<image>" * (16 + 6 * 9), "<image>" * (16 + 8 * 5)),
    # 2 x 1 or 1 x 2 tiles, and the whole image.
    "internvl": ("<IMG_CONTEXT>", *["<img>" + "<IMG_CONTEXT>" * 12 + "</img>"] * 2),
}
"""What the chat template writes for an image, and what becomes of it for 30 x 20 and for 17 x 40 pixels."""
PROJECTORS: dict[str, str | tuple[str, ...]] = {
    "llava (CLIP)": "model.multi_modal_projector.",
    "llava (SigLIP)": "model.multi_modal_projector.",
    "qwen2_5_vl": "model.visual.merger.",
    "qwen3_vl": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "smolvlm": "model.connector.",
    "gemma3": "model.multi_modal_projector.",
    "llava_onevision": ("model.multi_modal_projector.", "model.image_newline"),
    "internvl": "model.multi_modal_projector.",
}
LANGUAGE = ("model.language_model.", "model.text_model.", "lm_head.")


@pytest.fixture(params=ALL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def encoder(family: str) -> Encoder:
    return load_encoder(folder_of(family))


@pytest.fixture
def loaded(family: str) -> LoadedModel:
    return load_model(folder_of(family))


def whole_text(encoder: Encoder, one: Sample) -> str:
    return "".join(text for text, _ in encoder.segments(one.turns, one.image is not None))


def logits_of(loaded: LoadedModel, encoded: EncodedSample) -> Tensor:
    """The logits `[L, V]` of one sample by the model's own forward pass, head included."""
    batch = model_inputs(loaded.encoder.collate([encoded]))
    with torch.inference_mode():
        return torch.as_tensor(loaded.model(**batch).logits[0])


def test_an_image_becomes_the_tokens_that_the_family_documents(family: str, encoder: Encoder) -> None:
    mark, *expanded = EXPANDED[family]
    for size, expected in zip(((30, 20), (17, 40)), expanded, strict=True):
        one = sample(size=size)
        text = whole_text(encoder, one).replace(mark, expected)
        ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encoder.encode(one).input_ids.tolist() == ids


def test_answers_and_their_end_tokens_are_supervised_and_nothing_else(family: str, encoder: Encoder) -> None:
    end = "<|im_end|>" if family not in FAMILIES else FAMILIES[family].end
    space = " " if family == "smolvlm" else ""
    for one in SAMPLES:
        encoded = encoder.encode(one)
        answers = [f"{space}{turn.answer}{end}" for turn in one.turns]
        assert encoder.tokenizer.decode(encoded.answer_ids) == "".join(answers)
        assert torch.equal(encoder.answer_ids(one), encoded.answer_ids)
        supervised = encoded.labels != IGNORED
        assert torch.equal(encoded.labels[supervised], encoded.input_ids[supervised])
        starts = supervised & ~torch.nn.functional.pad(supervised, (1, 0))[:-1]
        assert int(starts.sum()) == len(one.turns)


def test_the_prompt_of_generation_is_the_beginning_of_the_sample(encoder: Encoder) -> None:
    for one in SAMPLES:
        encoded, prompt = encoder.encode(one), encoder.encode_prompt(one)
        length = len(prompt.input_ids)
        assert torch.equal(prompt.input_ids, encoded.input_ids[:length])
        assert encoded.labels[length] != IGNORED
        assert all(len(values) == length for values in prompt.token_inputs.values())


@pytest.mark.parametrize("family", ["llava (CLIP)", "llava (SigLIP)", "gemma3"])
def test_ids_and_tensors_are_those_of_the_familys_own_processor(family: str, encoder: Encoder) -> None:
    processor = AutoProcessor.from_pretrained(folder_of(family), backend="pil")
    for size in ((30, 20), (17, 40)):
        one = sample(size=size)
        assert one.image is not None
        expected = dict(
            processor(
                images=[one.image.load().pixels],
                text=[whole_text(encoder, one)],
                add_special_tokens=False,
                return_tensors="pt",
            )
        )
        encoded = encoder.encode(one)
        assert torch.equal(encoded.input_ids, expected.pop("input_ids")[0])
        assert expected.pop("attention_mask").all()
        found = {**encoded.image_inputs, **{name: ids[None] for name, ids in encoded.token_inputs.items()}}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_pixels_are_those_of_the_image_processor_alone(family: str, encoder: Encoder) -> None:
    processor = AutoImageProcessor.from_pretrained(folder_of(family), backend="pil")
    more = {"crop_to_patches": True} if family == "internvl" else {}  # what InternVL's processor asks for
    for size in ((30, 20), (17, 40)):
        one = sample(size=size)
        assert one.image is not None
        expected = processor([one.image.load().pixels], return_tensors="np", **more)
        found = encoder.encode(one).image_inputs
        np.testing.assert_array_equal(found["pixel_values"], expected["pixel_values"])
        assert (
            "image_grid_thw" not in expected or found["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()
        )


def test_types_of_tokens_are_one_at_visual_tokens_and_zero_elsewhere(family: str, encoder: Encoder) -> None:
    for one in SAMPLES:
        encoded = encoder.encode(one)
        assert len(encoded.token_inputs) == (family in ("qwen2_5_vl", "qwen3_vl", "gemma3"))
        for types in encoded.token_inputs.values():
            assert torch.equal(types, (encoded.input_ids == encoder.image_token_id).long())


def test_a_padded_batch_gives_the_hidden_states_of_its_samples_alone(loaded: LoadedModel) -> None:
    encoded = [loaded.encoder.encode(one) for one in SAMPLES]
    with torch.inference_mode():
        rows = answer_rows(loaded.model, loaded.encoder.collate(encoded))
        found = loaded.model.get_output_embeddings()(rows.hidden)
    assert torch.equal(rows.gold_ids, torch.cat([one.answer_ids for one in encoded]))
    expected = [logits_of(loaded, one)[:-1][one.labels[1:] != IGNORED] for one in encoded]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-3)
    assert found.std() > 0.1


def test_a_model_in_bfloat16_takes_the_same_batches(family: str) -> None:
    batches = []
    for precision in ("fp32", "bf16"):
        loaded = load_model(folder_of(family), precision)
        batch = loaded.encoder.collate([loaded.encoder.encode(one) for one in SAMPLES])
        with torch.inference_mode():
            rows = answer_rows(loaded.model, batch, {"vision": FeatureLayout(), "prompt": FeatureLayout()})
        assert rows.hidden.dtype == loaded.model.dtype
        batches.append([values.float().flatten() for values in (rows.hidden, *rows.features.values())])
    for single, half in zip(*batches, strict=True):
        assert torch.nn.functional.cosine_similarity(single, half, dim=0) > 0.99


def test_an_image_changes_what_follows_it(loaded: LoadedModel) -> None:
    encoded = loaded.encoder.encode(sample())
    name = "pixel_values"
    inverted = {**encoded.image_inputs, name: -encoded.image_inputs[name]}
    with torch.inference_mode():
        batch = loaded.encoder.collate([encoded])
        before = answer_rows(loaded.model, batch).hidden
        after = answer_rows(loaded.model, {**batch, name: inverted[name]}).hidden
    assert (before - after).abs().max() > 1e-3


def test_the_vision_feature_is_the_mean_of_what_the_projector_gives(loaded: LoadedModel) -> None:
    encoded = [loaded.encoder.encode(one) for one in SAMPLES]
    with torch.inference_mode():
        rows = answer_rows(loaded.model, loaded.encoder.collate(encoded), {"vision": FeatureLayout()})
        for index, one in enumerate(encoded):
            assert bool(rows.present["vision"][index]) == bool(one.image_inputs)
            expected = visual_tokens(loaded, one).mean(dim=0) if one.image_inputs else torch.zeros(32)
            torch.testing.assert_close(rows.features["vision"][index], expected, rtol=1e-4, atol=1e-5)


def visual_tokens(loaded: LoadedModel, encoded: EncodedSample) -> Tensor:
    """What the model's own method makes of the image, `[T, D]`."""
    model: Any = loaded.model
    method = model.base_model.get_image_features
    known = inspect.signature(inspect.unwrap(method)).parameters
    features: Any = method(**{name: value for name, value in encoded.image_inputs.items() if name in known})
    tokens = features.pooler_output
    tokens = torch.cat(list(tokens)) if isinstance(tokens, tuple | list) else tokens
    return tokens.reshape(-1, tokens.shape[-1])


def test_a_batch_of_text_alone_has_a_vision_feature_of_zeros_in_the_graph(loaded: LoadedModel) -> None:
    batch = loaded.encoder.collate([loaded.encoder.encode(sample(size=None))])
    feature = answer_rows(loaded.model, batch, {"vision": FeatureLayout()}).features["vision"]
    assert torch.equal(feature, torch.zeros(1, 32))
    assert feature.requires_grad


def test_greedy_answers_of_a_padded_batch_are_the_largest_logits_step_by_step(loaded: LoadedModel) -> None:
    loaded.model.generation_config.update(do_sample=True, repetition_penalty=1.5, temperature=0.1, top_k=1, top_p=0.001)
    head = loaded.model.get_output_embeddings().weight.data
    head[loaded.encoder.vocabulary_size :] = 10.0 * head[: len(head) - loaded.encoder.vocabulary_size]
    (answers,) = greedy_answers(loaded, SAMPLES, batch_size=len(SAMPLES), max_new_tokens=4)
    assert [answer.text for answer in answers] == [slow_answer(loaded, one) for one in SAMPLES]


def slow_answer(loaded: LoadedModel, one: Sample) -> str:
    """Four greedy tokens, or as many as there are before an end token, each by a forward pass of its own."""
    encoded = loaded.encoder.encode_prompt(one)
    ids: list[int] = []
    while len(ids) < 4 and not (ids and ids[-1] in loaded.encoder.end_token_ids):
        longer = EncodedSample(
            "one",
            torch.cat([encoded.input_ids, torch.tensor(ids, dtype=torch.int64)]),
            torch.full((len(encoded.input_ids) + len(ids),), IGNORED),
            encoded.image_inputs,
            {n: torch.nn.functional.pad(v, (0, len(ids))) for n, v in encoded.token_inputs.items()},
            None,
        )
        ids.append(int(logits_of(loaded, longer)[-1, : loaded.encoder.vocabulary_size].argmax()))
    return str(loaded.encoder.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def named(loaded: LoadedModel, *, trained: bool) -> Iterator[str]:
    return (name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad is trained)


def test_tower_projector_and_language_model_are_told_apart(family: str, loaded: LoadedModel) -> None:
    parts = parameters_by_part(loaded.model)
    names = [name for name, _ in loaded.model.named_parameters()]
    assert sorted(parts["language"]) == sorted(name for name in names if name.startswith(LANGUAGE))
    assert sorted(parts["projector"]) == sorted(name for name in names if name.startswith(PROJECTORS[family]))
    assert sum(map(len, parts.values())) == len(names)
    assert parts["vision tower"]
    freeze(loaded.model, train_vision_tower=False, train_projector=True)
    assert set(named(loaded, trained=False)) == set(parts["vision tower"])
    freeze(loaded.model, train_vision_tower=True, train_projector=False)
    assert set(named(loaded, trained=False)) == set(parts["projector"])


def test_a_saved_encoder_is_loaded_as_it_was(family: str, loaded: LoadedModel, tmp_path: Path) -> None:
    loaded.model.save_pretrained(tmp_path)
    loaded.encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert again.identity() == loaded.encoder.identity()
    assert again.end_token_ids == loaded.encoder.end_token_ids
    for one in SAMPLES:
        assert torch.equal(again.encode(one).input_ids, loaded.encoder.encode(one).input_ids)


@pytest.mark.parametrize("answer", ["i", "assistant", "", "?", "\n two\nlines "])
def test_an_answer_that_looks_like_its_surroundings_is_found(encoder: Encoder, family: str, answer: str) -> None:
    end = "<|im_end|>" if family not in FAMILIES else FAMILIES[family].end
    expected = answer.strip() if family == "gemma3" else answer  # its template trims
    space = " " if family == "smolvlm" else ""
    encoded = encoder.encode(sample([Turn("assistant\n?", answer)] * 2))
    assert encoder.tokenizer.decode(encoded.answer_ids) == f"{space}{expected}{end}" * 2


def test_the_second_turn_is_encoded_as_the_first_is_behind_it(encoder: Encoder) -> None:
    both, first = encoder.encode(sample(TURNS)), encoder.encode(sample(TURNS[:1]))
    assert torch.equal(both.input_ids[: len(first.input_ids)], first.input_ids)
    assert torch.equal(both.labels[: len(first.labels)], first.labels)

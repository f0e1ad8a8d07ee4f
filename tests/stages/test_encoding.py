"""Encoding: what is supervised, how images become tokens, how batches are padded."""

import dataclasses

import pytest
import torch
from tests.world import World

from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample, Turn
from betakd_stages.encoding import IGNORED, Encoder
from betakd_stages.errors import DataError, ModelError
from betakd_stages.models.loading import load_encoder


@pytest.fixture(scope="module")
def encoder(world: World) -> Encoder:
    return load_encoder(world.student)


def sample(answer: str, category: str = "which") -> Sample:
    first = next(one for one in load_samples("digits:test") if one.category == category)
    return dataclasses.replace(first, turns=(Turn(first.turns[0].question, answer),))


def test_exactly_the_answer_and_its_end_token_are_supervised(encoder: Encoder) -> None:
    encoded = encoder.encode(sample("17", "sum"))
    assert encoder.tokenizer.convert_ids_to_tokens(encoded.answer_ids.tolist()) == ["1", "7", "</s>"]
    supervised = encoded.labels != IGNORED
    assert torch.equal(encoded.labels[supervised], encoded.input_ids[supervised])
    assert encoder.tokenizer.decode(encoded.input_ids[~supervised]).endswith("two digits ? assistant:")


def test_an_image_of_another_size_than_the_towers_is_refused(encoder: Encoder) -> None:
    small = load_samples("digits:test?types=which&count=1")[0]
    with pytest.raises(DataError, match="its image is 8 x 8 pixels after image processing, .* tower takes 16 x 16"):
        encoder.encode(small)


def test_every_turn_is_supervised_and_the_image_leads_the_first(encoder: Encoder) -> None:
    turns = (Turn("which digit is this ?", "7"), Turn("is this digit even ?", "no"))
    talk = dataclasses.replace(sample("7"), turns=turns)
    encoded = encoder.encode(talk)
    tokens = encoder.tokenizer.convert_ids_to_tokens(encoded.answer_ids.tolist())
    assert tokens == ["7", "</s>", "no", "</s>"]
    image_id = encoder.tokenizer.convert_tokens_to_ids("<image>")
    assert (encoded.input_ids == image_id).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_a_text_only_sample_has_no_image_token_and_mixes_into_a_batch(encoder: Encoder) -> None:
    text_only = dataclasses.replace(sample("7"), image=None, sample_id="text")
    batch = encoder.collate([encoder.encode(sample("7")), encoder.encode(text_only)])
    assert batch["has_image"].tolist() == [True, False]
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert batch["attention_mask"].sum(dim=1).tolist() == [12, 8]


def test_padding_goes_to_the_side_asked_for_and_is_never_attended_to_or_supervised(encoder: Encoder) -> None:
    short, long = encoder.encode(sample("7")), encoder.encode(sample("17", "sum"))
    for side, place in (("right", slice(0, len(short.input_ids))), ("left", slice(-len(short.input_ids), None))):
        batch = encoder.collate([short, long], padding_side=side)
        assert torch.equal(batch["input_ids"][0, place], short.input_ids)
        assert torch.equal(batch["labels"][0, place], short.labels)
        assert batch["attention_mask"][0].sum() == len(short.input_ids)
        assert (batch["labels"][0] != IGNORED).sum() == len(short.answer_ids)


def test_a_prompt_ends_where_the_first_answer_begins(encoder: Encoder) -> None:
    prompt = encoder.encode_prompt(sample("7"))
    assert encoder.tokenizer.decode(prompt.input_ids).endswith("assistant:")
    assert (prompt.labels == IGNORED).all()


def test_the_identity_sees_vocabulary_template_and_image_processing(world: World) -> None:
    changed = load_encoder(world.student)
    before = changed.identity()
    changed.tokenizer.chat_template += " "
    assert changed.identity()["prompt"] != before["prompt"]
    changed.tokenizer.add_tokens(["new"])
    changed.image_processor.image_mean = [0.0, 0.0, 0.0]
    fresh = type(changed)(changed.tokenizer, changed.image_processor, changed.config).identity()
    assert fresh["tokenizer"] != before["tokenizer"]
    assert fresh["image_processor"] != before["image_processor"]


def test_templates_without_an_end_token_or_a_template_at_all_are_refused(world: World) -> None:
    encoder = load_encoder(world.student)
    encoder.tokenizer.chat_template = encoder.tokenizer.chat_template.replace("{{ eos_token }}", "")
    with pytest.raises(ModelError, match="closes an answer without the end-of-sequence token"):
        encoder.encode(sample("7"))
    encoder.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="the tokenizer has no chat template"):
        type(encoder)(encoder.tokenizer, encoder.image_processor, encoder.config)

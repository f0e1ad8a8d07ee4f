"""Whether a cache belongs to what the student sees: every difference is named, nothing is skipped silently."""

import dataclasses

import numpy as np
import pytest
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.data import load_samples
from betakd_stages.data.sample import SampleSet, Turn
from betakd_stages.distillation.dataset import EncodedSamples, shuffled_within_lengths
from betakd_stages.distillation.matching import match_cache
from betakd_stages.errors import MismatchError
from betakd_stages.models.loading import load_encoder


def test_the_same_data_matches_whole_in_any_order(world: World) -> None:
    cache, encoder = open_cache(world.cache), load_encoder(world.student)
    samples = load_samples(world.data)
    backwards = SampleSet(samples.specification, samples[::-1])
    matched = match_cache(cache, backwards, encoder, "stop")
    assert matched.num_dropped == 0
    stored = cache.sample_ids.to_pylist()
    assert [stored[index] for index in matched.cache_indices] == [sample.sample_id for sample in backwards]


def test_another_tokenizer_and_another_template_are_refused(world: World) -> None:
    cache, samples = open_cache(world.cache), load_samples(world.data)
    encoder = load_encoder(world.student)
    encoder.tokenizer.chat_template += " "
    with pytest.raises(MismatchError, match="the student's prompt is not the one of the cache \\(template_sha256"):
        match_cache(cache, samples, encoder, "drop")
    encoder = load_encoder(world.student)
    encoder.tokenizer.add_tokens(["new"])
    with pytest.raises(MismatchError, match="the student's tokenizer is not the one of the cache .*use a student with"):
        match_cache(cache, samples, encoder, "drop")


def test_other_data_is_refused_naming_the_first_sample_and_the_remedy(world: World) -> None:
    cache, encoder = open_cache(world.cache), load_encoder(world.student)
    with pytest.raises(MismatchError) as caught:
        match_cache(cache, load_samples("digits:test"), encoder, "stop")
    assert str(caught.value).startswith("sample 'digits-test-1350-which': the cache holds no such sample (2235 of 2235")
    assert "Give the data the cache was made from" in str(caught.value)
    with pytest.raises(MismatchError, match="no sample of 'digits:test' is in the cache"):
        match_cache(cache, load_samples("digits:test"), encoder, "drop")


def test_a_changed_answer_is_refused_or_dropped_and_counted(world: World) -> None:
    cache, encoder = open_cache(world.cache), load_encoder(world.student)
    samples = load_samples(world.data)
    third = samples[3]
    changed = dataclasses.replace(third, turns=(Turn(third.turns[0].question, "prime"),))
    altered = SampleSet(samples.specification, (*samples[:3], changed, *samples[4:]))
    with pytest.raises(MismatchError, match=f"sample '{third.sample_id}': its .* \\(1 of 48 samples differ"):
        match_cache(cache, altered, encoder, "stop")
    matched = match_cache(cache, altered, encoder, "drop")
    assert matched.num_dropped == 1
    assert third.sample_id not in [sample.sample_id for sample in matched.samples]


def test_another_image_is_refused_when_it_is_read(world: World) -> None:
    encoder = load_encoder(world.student)
    cache = open_cache(world.cache)
    matched = match_cache(cache, load_samples(world.data + "&pixel_noise=0.1"), encoder, "stop")
    dataset = EncodedSamples(matched.samples, encoder, matched.image_sha256)
    with pytest.raises(MismatchError, match="its image is not the one the teacher saw \\(sha256 [0-9a-f]+ against"):
        dataset[0]


def test_shuffled_records_belong_to_other_samples_of_the_same_length(world: World) -> None:
    cache, encoder = open_cache(world.cache), load_encoder(world.student)
    matched = match_cache(cache, load_samples(world.data), encoder, "stop")
    shuffled = shuffled_within_lengths(matched, cache, seed=0)
    assert sorted(shuffled) == sorted(matched.cache_indices)
    assert (shuffled != matched.cache_indices).all()
    before, after = (np.diff(cache.batch(indices).token_ptr) for indices in (matched.cache_indices, shuffled))
    np.testing.assert_array_equal(before, after)

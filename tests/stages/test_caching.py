"""Stage one: the cache says what the teacher says, and an interrupted or faulty run loses nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.world import World
from transformers import LlavaForConditionalGeneration

from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.encoding import IGNORED
from betakd_stages.errors import DataError
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.opening import open_hf_teacher


def settings(world: World, **changes: object) -> CacheTeacherSettings:
    return CacheTeacherSettings.model_validate({"teacher": str(world.teacher), "data": world.data, **changes})


def test_cached_numbers_equal_the_teachers_full_logits(world: World, tmp_path: Path) -> None:
    """Log-probabilities, tail, moments and features of every sample against the whole model run on it alone."""
    cache_teacher(settings(world, exact=True, top_k=8), tmp_path / "cache", progress=SilentProgress())
    cache = open_cache(tmp_path / "cache")
    model = LlavaForConditionalGeneration.from_pretrained(world.teacher).eval()
    encoder = load_encoder(world.teacher)
    captured: list[torch.Tensor] = []
    model.model.multi_modal_projector.register_forward_hook(lambda *args: captured.append(args[-1]))
    for sample in load_samples(world.data):
        encoded = encoder.encode(sample)
        assert encoded.image_inputs
        with torch.no_grad():
            output = model(input_ids=encoded.input_ids[None], **encoded.image_inputs, output_hidden_states=True)
        rows = (encoded.labels[1:] != IGNORED).nonzero()[:, 0]
        logits = output.logits[0, rows].double().numpy()
        record = cache.record(int(cache.index_of([sample.sample_id])[0]))
        assert record.token_ids.tolist() == encoded.answer_ids.tolist()
        start = 0
        for row, count in enumerate(record.entry_counts):
            ids = record.ids[start : start + count]
            gaps = record.gaps[start : start + count]
            np.testing.assert_allclose(logits[row].max() - logits[row][ids], gaps, atol=2e-5)
            tail = np.delete(logits[row] - logits[row].max(), ids)
            for column, temperature in enumerate((1.0, 2.0)):
                expected = np.log(np.exp(tail / temperature).sum())
                np.testing.assert_allclose(record.tail_lse[row, column], expected, atol=2e-5)
            start += count
        assert record.logit_mean is not None
        np.testing.assert_allclose(record.logit_mean, logits.mean(axis=1), atol=2e-5)
        np.testing.assert_allclose(record.features["vision"], captured.pop()[0].mean(dim=0).numpy(), atol=2e-5)
        prompt = output.hidden_states[-1][0, : rows[0] + 1].mean(dim=0).numpy()
        np.testing.assert_allclose(record.features["prompt"], prompt, atol=2e-5)


def test_the_head_is_applied_to_answer_rows_only(world: World) -> None:
    some = settings(world)
    teacher = open_hf_teacher(some)
    encoded = [teacher.encoder.encode(sample) for sample in load_samples(world.data)]
    shapes: list[tuple[int, ...]] = []
    head = teacher.loaded.model.get_output_embeddings()
    head.register_forward_hook(lambda head, inputs, logits: shapes.append(logits.shape))
    records = teacher.score(encoded).records
    assert shapes == [(sum(len(record.token_ids) for record in records), 34)]


def test_a_second_call_finds_all_there_and_a_wider_limit_adds_the_rest(world: World, tmp_path: Path) -> None:
    first = cache_teacher(settings(world, limit=10), tmp_path / "cache", progress=SilentProgress())
    again = cache_teacher(settings(world, limit=10), tmp_path / "cache", progress=SilentProgress())
    rest = cache_teacher(settings(world), tmp_path / "cache", progress=SilentProgress())
    assert (first.num_new, again.num_new, rest.num_new) == (10, 0, 38)
    assert sorted(open_cache(tmp_path / "cache").sample_ids.to_pylist()) == sorted(
        sample.sample_id for sample in load_samples(world.data)
    )


def as_files(world: World, folder: Path, count: int) -> str:
    """The first samples as LLaVA-style JSON with image files."""
    (folder / "images").mkdir(parents=True)
    entries = []
    for index, sample in enumerate(load_samples(world.data)[:count]):
        assert sample.image is not None
        sample.image.load().pixels.save(folder / "images" / f"{index}.png")
        turn = sample.turns[0]
        talk = [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer}]
        entries.append({"id": index, "image": f"{index}.png", "conversations": talk})
    (folder / "data.json").write_text(json.dumps(entries))
    return f"llava:{folder}/data.json?images={folder}/images"


def test_a_corrupt_image_stops_with_its_name_and_what_was_scored_before_stays(world: World, tmp_path: Path) -> None:
    data = as_files(world, tmp_path / "data", 12)
    broken = tmp_path / "data" / "images" / "7.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:40])
    some = settings(world, data=data, batch_size=3)
    with pytest.raises(DataError) as caught:
        cache_teacher(some, tmp_path / "cache", progress=SilentProgress())
    assert f"sample 7: image {broken} is none of JPEG, PNG" in str(caught.value)
    assert "or corrupt: replace the file" in str(caught.value)
    assert "--set max_rejected=N" in str(caught.value)
    assert len(open_cache(tmp_path / "cache", allow_incomplete=True)) == 7
    broken.write_bytes(good)
    assert cache_teacher(some, tmp_path / "cache", progress=SilentProgress()).num_new == 5


def test_a_run_that_its_very_first_image_stops_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    data = as_files(world, tmp_path / "data", 6)
    (tmp_path / "data" / "images" / "0.png").unlink()
    with pytest.raises(DataError, match="sample 0: image .* does not exist|sample 0: image .*0.png"):
        cache_teacher(settings(world, data=data), tmp_path / "cache", progress=SilentProgress())
    assert not (tmp_path / "cache").exists()


def test_rejected_samples_are_recorded_where_that_is_allowed(world: World, tmp_path: Path) -> None:
    data = as_files(world, tmp_path / "data", 6)
    (tmp_path / "data" / "images" / "2.png").unlink()
    summary = cache_teacher(settings(world, data=data, max_rejected=1), tmp_path / "cache", progress=SilentProgress())
    assert (summary.num_samples, summary.num_rejected) == (5, 1)


def test_a_teacher_that_says_nan_is_named_with_the_sample(world: World, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    shutil.copytree(world.teacher, sick)
    model = LlavaForConditionalGeneration.from_pretrained(sick)
    model.lm_head.weight.data[5, 0] = torch.nan
    model.save_pretrained(sick)
    with pytest.raises(DataError, match="sample digits-.*: the teacher's logits hold NaN or infinity"):
        cache_teacher(settings(world, teacher=str(sick)), tmp_path / "cache", progress=SilentProgress())


def test_batch_size_does_not_change_what_is_cached(world: World, tmp_path: Path) -> None:
    for size in (1, 16):
        cache_teacher(settings(world, batch_size=size, exact=True), tmp_path / str(size), progress=SilentProgress())
    one, many = open_cache(tmp_path / "1"), open_cache(tmp_path / "16")
    for sample_id in one.sample_ids.to_pylist():
        left, right = (cache.record(int(cache.index_of([sample_id])[0])) for cache in (one, many))
        np.testing.assert_allclose(np.sort(left.gaps), np.sort(right.gaps), atol=1e-5)
        np.testing.assert_allclose(left.features["prompt"], right.features["prompt"], atol=1e-5)

"""`cache verify --rescore`: a sound cache passes, and every way in which its numbers could be wrong is found."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.world import World
from transformers import LlavaForConditionalGeneration

from betakd_cache import CacheWriter, TeacherRecord, open_cache
from betakd_pipe.cli import main
from betakd_stages.caching import run as caching
from betakd_stages.caching.rescoring import rescore
from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


def wrong_cache(world: World, path: Path, change: Callable[[TeacherRecord], TeacherRecord]) -> Path:
    """A cache like the world's, but for a change to the record of one sample; its hashes are right."""
    original = caching._with_row

    def with_row(record: TeacherRecord, sample: Sample) -> TeacherRecord:
        record = original(record, sample)
        return change(record) if record.sample_id == load_samples(world.data)[7].sample_id else record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching, "_with_row", with_row)
        settings = CacheTeacherSettings(teacher=str(world.teacher), data=world.data, top_k=8, temperatures=(1.0, 2.0))
        caching.cache_teacher(settings, path, progress=SilentProgress())
    return path


def test_a_sound_cache_agrees_with_its_teacher_within_the_formats_precision(world: World) -> None:
    found = rescore(world.cache, str(world.teacher), world.data, 48)
    assert found.ok
    assert (found.num_samples, found.num_disagreeing, found.changed_environment) == (48, 0, {})
    assert found.id_agreement + found.num_tied / found.num_ranks == pytest.approx(1)
    assert (
        tuple(row.temperature for row in found.temperatures) == open_cache(world.cache).manifest.token_rule.temperatures
    )
    for row in found.temperatures:
        assert 1e-4 < row.largest_difference * row.temperature < 0.05  # the codes of one byte show
        assert row.largest_unexplained < 1e-4
        assert 0 < row.bucket_kl < 2e-5


def test_the_figures_are_those_of_the_whole_models_log_probabilities(world: World, tmp_path: Path) -> None:
    """The mean difference and the bucket KL of an exact cache that lacks half a nat somewhere, from the formulas."""
    settings = CacheTeacherSettings(
        teacher=str(world.teacher), data=world.data, limit=1, exact=True, top_k=5, temperatures=(1.0,)
    )
    caching.cache_teacher(settings, tmp_path / "cache", progress=SilentProgress())
    cache = open_cache(tmp_path / "cache")
    record = cache.record(0)
    logits = full_logits(world, record)
    wrong = dataclasses.replace(record, tail_lse=record.tail_lse + np.float32(0.5))
    replace_only_record(cache.path, wrong, tmp_path / "wrong")
    found = rescore(tmp_path / "wrong", str(world.teacher), world.data, 1).temperatures[0]
    truth = log_softmax(logits)
    kl, differences = [], []
    starts = np.cumsum(record.entry_counts) - record.entry_counts
    for row, (start, count) in enumerate(zip(starts, record.entry_counts, strict=True)):
        ids = record.ids[start : start + count]
        tail = np.logaddexp.reduce(np.delete(logits[row] - logits[row].max(), ids)) + 0.5
        buckets = np.append(-record.gaps[start : start + count].astype(np.float64), tail)
        held = log_softmax(buckets)
        rest = np.logaddexp.reduce(np.delete(truth[row], ids))
        exact = np.append(truth[row][ids], rest)
        kl.append((np.exp(exact) * (exact - held)).sum())
        differences += np.abs(held - exact)[:-1].tolist()
    assert found.bucket_kl == pytest.approx(np.mean(kl), rel=1e-4)
    assert found.mean_difference == pytest.approx(np.mean(differences), rel=1e-4)
    assert found.largest_difference == pytest.approx(np.max(differences), rel=1e-4)
    assert found.largest_unexplained == pytest.approx(np.max(differences), rel=1e-4)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log probabilities along the last axis."""
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def full_logits(world: World, record: TeacherRecord) -> NDArray[np.float64]:
    """The logits `[T, V]` of the whole model at a sample's answer."""
    model = LlavaForConditionalGeneration.from_pretrained(world.teacher).eval()
    sample = next(sample for sample in load_samples(world.data) if sample.sample_id == record.sample_id)
    encoded = load_encoder(world.teacher).encode(sample)
    assert encoded.image_inputs
    with torch.no_grad():
        output = model(input_ids=encoded.input_ids[None], **encoded.image_inputs)
    return output.logits[0, (encoded.labels[1:] >= 0).nonzero()[:, 0]].double().numpy()


def replace_only_record(source: Path, record: TeacherRecord, path: Path) -> None:
    """A cache of the rules of `source` that holds one record."""
    manifest = open_cache(source).manifest
    with CacheWriter.open(
        path,
        identity=manifest.identity,
        token_rule=manifest.token_rule,
        vocabulary_size=manifest.vocabulary_size,
        feature_sizes=manifest.feature_sizes,
    ) as writer:
        writer.append(record)
        writer.complete()


def swap_first_ids(record: TeacherRecord) -> TeacherRecord:
    """The two likeliest ids of the first token, each at the other's rank; neither is the gold id."""
    ids = record.ids.copy()
    start = next(
        place for place in np.cumsum(record.entry_counts) - record.entry_counts
        if not np.isin(ids[place : place + 2], record.token_ids).any()
    )  # fmt: skip
    ids[[start, start + 1]] = ids[[start + 1, start]]
    return dataclasses.replace(record, ids=ids)


@pytest.mark.parametrize(
    ("change", "num_disagreeing"),
    [
        (swap_first_ids, 2),
        (lambda record: dataclasses.replace(record, tail_lse=record.tail_lse + np.array([0, 0.5], np.float32)), 0),
        (lambda record: dataclasses.replace(record, gaps=record.gaps * 0, gold_gap=record.gold_gap * 0), 0),
    ],
)
def test_a_wrong_number_under_right_hashes_is_found_and_its_sample_named(
    world: World, tmp_path: Path, change: Callable[[TeacherRecord], TeacherRecord], num_disagreeing: int
) -> None:
    path = wrong_cache(world, tmp_path / "cache", change)
    found = rescore(path, str(world.teacher), world.data, 48)
    assert not found.ok
    assert found.num_disagreeing == num_disagreeing
    assert found.worst_sample == load_samples(world.data)[7].sample_id


def test_another_teacher_is_refused_by_name(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(world.teacher, other)
    model = LlavaForConditionalGeneration.from_pretrained(other)
    model.lm_head.weight.data[5, 0] += 1
    model.save_pretrained(other)
    with pytest.raises(MismatchError, match=f"{other} is not the teacher of {world.cache} \\(teacher.weights_sha256: "):
        rescore(world.cache, str(other), world.data, 4)


def test_data_that_the_cache_was_not_made_from_are_refused(world: World) -> None:
    with pytest.raises(MismatchError, match="digits:test has no sample 'digits-transfer-.*', which .* holds"):
        rescore(world.cache, str(world.teacher), "digits:test", 4)


def test_no_sample_at_all_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="0 samples, tolerance None: expected at least 1"):
        rescore(world.cache, str(world.teacher), world.data, 0)


def test_the_command_prints_the_figures_and_ends_with_1_where_they_are_wrong(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--rescore", "48", "--teacher", str(world.teacher), "--data", world.data]
    assert main(["cache", "verify", str(world.cache), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{world.cache}: sound; ")
    assert {"num_disagreeing: 0", "num_samples: 48", "ok: True"} <= set(lines)
    path = wrong_cache(world, tmp_path / "cache", swap_first_ids)
    assert main(["cache", "verify", str(path), *flags, "--json"]) == 1
    fields = json.loads(capsys.readouterr().out)
    assert (fields["ok"], fields["problems"], fields["rescoring"]["num_disagreeing"]) == (False, [], 2)


def test_rescoring_without_a_teacher_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "verify", str(world.cache), "--rescore", "3"]) == 2
    assert capsys.readouterr().err == (
        "betakd-pipe: --rescore runs the teacher again: give --teacher DIR and --data NAME:SPLIT as well\n"
    )

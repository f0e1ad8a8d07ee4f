"""Agreement with the teacher on held-out samples, against both models' own logits in float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from tests.stages.test_training import TRAINING
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.distillation.held_out import HeldOutRecords, TeacherAgreement, held_out_agreement
from betakd_stages.distillation.matching import match_cache
from betakd_stages.distillation.run import distill
from betakd_stages.encoding import IGNORED
from betakd_stages.errors import MismatchError
from betakd_stages.models.loading import LoadedModel, load_model
from betakd_stages.models.tiny import TEACHER_SIZE, save_tiny_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

HELD_OUT = "digits:validation?count=40&seed=5"


@pytest.fixture(scope="module")
def validation_cache(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(world.teacher, tmp_path_factory.mktemp("held-out") / "cache")


def make_cache(teacher: Path, folder: Path, data: str = HELD_OUT, **rules: Any) -> Path:
    cache_teacher(
        CacheTeacherSettings(teacher=str(teacher), data=data, batch_size=40, **rules), folder, progress=SilentProgress()
    )
    return folder


def settings(world: World, **changes: Any) -> DistillSettings:
    training = {**TRAINING, "steps": 4, "evaluate_every_steps": 2}
    common = {"student": str(world.student), "cache": str(world.cache), "data": world.data, "training": training}
    return DistillSettings.model_validate({**common, "objective": {"energies": ["fkl"]}, **changes})


def opened(asked: DistillSettings, path: str) -> Any:
    return open_cache(path)


def measured(world: World, student: LoadedModel, **changes: Any) -> dict[str, float]:
    asked = settings(world, **changes)
    return held_out_agreement(asked, student.encoder, open_cache(str(asked.cache)), opened).measure(student)


def log_probabilities(loaded: LoadedModel, specification: str) -> list[NDArray[np.float64]]:
    """Per sample `[T, V]`, by transformers' own forward pass with the head, one sample at a time."""
    found = []
    for sample in load_samples(specification):
        encoded = loaded.encoder.encode(sample)
        inputs = {"input_ids": encoded.input_ids[None], **encoded.image_inputs}
        with torch.inference_mode():
            logits = loaded.model(**inputs, attention_mask=torch.ones_like(encoded.input_ids)[None]).logits[0, :-1]
        rows = logits[encoded.labels[1:] != IGNORED, : loaded.encoder.vocabulary_size].double().numpy()
        found.append(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))
    return found


def test_agreement_and_divergence_are_those_of_both_models_own_logits(world: World, validation_cache: Path) -> None:
    student, teacher = load_model(world.student), load_model(world.teacher)
    own, theirs = log_probabilities(student, HELD_OUT), log_probabilities(teacher, HELD_OUT)
    pairs = list(zip(own, theirs, strict=True))
    shares = [np.mean(s.argmax(axis=1) == t.argmax(axis=1)) for s, t in pairs]
    divergences = [np.mean((np.exp(t) * (t - s)).sum(axis=1)) for s, t in pairs]
    assert 0 < np.mean(shares) < 1
    assert len({len(s) for s in own}) > 1, "answers of one length would not show what is averaged first"
    found = measured(world, student, validation=HELD_OUT, validation_cache=str(validation_cache))
    assert found["validation_agreement"] == pytest.approx(100 * np.mean(shares), abs=1e-9)
    assert found["validation_forward_kl"] == pytest.approx(np.mean(divergences), rel=2e-3)


def test_a_student_that_is_the_teacher_agrees_everywhere(world: World, validation_cache: Path) -> None:
    found = measured(world, load_model(world.teacher), validation=HELD_OUT, validation_cache=str(validation_cache))
    assert found["validation_agreement"] == 100
    assert 0 <= found["validation_forward_kl"] < 1e-4


def test_batches_of_any_size_give_the_same_figures(world: World, validation_cache: Path) -> None:
    student, cache = load_model(world.student), open_cache(validation_cache)
    matched = match_cache(cache, load_samples(HELD_OUT), student.encoder, "stop")
    records = HeldOutRecords(cache, matched, student.encoder)
    one, many = (TeacherAgreement(records, size).measure(student) for size in (1, 7))
    assert one == pytest.approx(many, rel=1e-5)


def test_the_parts_of_several_processes_are_all_samples_once(world: World, validation_cache: Path) -> None:
    student, cache = load_model(world.student), open_cache(validation_cache)
    records = HeldOutRecords(
        cache, match_cache(cache, load_samples(HELD_OUT), student.encoder, "stop"), student.encoder
    )
    parts = [id for index in range(3) for batch in records.batches(4, index, 3) for id in batch["sample_ids"]]
    assert sorted(parts) == sorted(sample.sample_id for sample in load_samples(HELD_OUT))


def test_tokens_whose_likeliest_the_cache_lacks_do_not_count(world: World, tmp_path: Path) -> None:
    """With one entry kept, the label, the teacher's own choice is known only where it is the label."""
    cache = make_cache(world.teacher, tmp_path / "cache", top_k=1)
    teacher = load_model(world.teacher)
    found = measured(world, teacher, validation=HELD_OUT, validation_cache=str(cache))
    assert found["validation_agreement"] == 100


def test_rows_and_results_have_the_columns_where_a_cache_is_named(
    world: World, validation_cache: Path, tmp_path: Path
) -> None:
    asked = settings(world, validation=HELD_OUT, validation_cache=str(validation_cache))
    summary = distill(asked, tmp_path / "run", progress=SilentProgress())
    rows = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    names = ["step", "validation_accuracy", "validation_agreement", "validation_forward_kl"]
    assert [list(row) for row in rows] == [names, names]
    assert rows[0]["validation_forward_kl"] != rows[1]["validation_forward_kl"]
    for name in names[1:]:
        assert summary.final_metrics[name] == rows[-1][name]


def test_without_a_name_the_runs_own_cache_is_taken_where_it_holds_every_sample(world: World) -> None:
    student = load_model(world.student)
    own = measured(world, student, validation=world.data)
    assert own == measured(world, student, validation=world.data, validation_cache=str(world.cache))
    assert own.keys() == {"validation_agreement", "validation_forward_kl"}
    assert measured(world, student, validation=HELD_OUT) == {}
    assert measured(world, student, validation=f"{world.data}&pixel_noise=0.1") == {}  # other images
    nothing = settings(world, training=TRAINING)
    assert held_out_agreement(nothing, student.encoder, open_cache(str(nothing.cache)), opened).measure(student) == {}


def test_a_cache_of_another_teacher_is_refused(world: World, tmp_path: Path) -> None:
    other = make_cache(save_tiny_model(tmp_path / "other", TEACHER_SIZE, seed=7), tmp_path / "cache")
    with pytest.raises(MismatchError, match=r"validation_cache .*cache is of a teacher with weights \w+, the run's .*"):
        measured(world, load_model(world.student), validation=HELD_OUT, validation_cache=str(other))


def test_a_named_cache_that_lacks_samples_leaves_no_run_folder(world: World, tmp_path: Path) -> None:
    asked = settings(world, validation=HELD_OUT, validation_cache=str(world.cache))
    with pytest.raises(MismatchError, match=r"the cache holds no such sample \(40 of 40 samples differ"):
        distill(asked, tmp_path / "run", progress=SilentProgress())
    assert not (tmp_path / "run").exists()


def test_a_cache_of_validation_data_without_such_data_is_refused(world: World) -> None:
    with pytest.raises(ValidationError, match="validation_cache is given but no data to measure on: name it as valid"):
        settings(world, validation_cache=str(world.cache), training=TRAINING)

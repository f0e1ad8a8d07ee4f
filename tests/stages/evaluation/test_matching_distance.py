"""The distance from a teacher that `evaluate` adds where a cache is named, against both models' own logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import wasserstein_distance
from tests.stages.evaluation.official_files import write_scienceqa
from tests.stages.models.world import folder_of
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.encoding import IGNORED
from betakd_stages.errors import MismatchError
from betakd_stages.evaluation.run import evaluate
from betakd_stages.matching_distance import matching_distance
from betakd_stages.models.loading import load_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, EvaluateSettings

DIGITS = "digits:test?count=12"


def make_cache(teacher: Path, folder: Path, data: str = DIGITS, **rules: Any) -> Path:
    common = {"teacher": str(teacher), "data": data, "batch_size": 12, "features": ()}
    cache_teacher(CacheTeacherSettings.model_validate({**common, **rules}), folder, progress=SilentProgress())
    return folder


def settings(model: Path, cache: Path | None, *benchmarks: str, **changes: Any) -> EvaluateSettings:
    common = {"model": str(model), "benchmark": benchmarks or (DIGITS,), "max_new_tokens": 2, "batch_size": 5}
    return EvaluateSettings.model_validate({**common, "cache": cache and str(cache), **changes})


def scored(out: Path, asked: EvaluateSettings) -> dict[str, Any]:
    return evaluate(asked, out, progress=SilentProgress())


@pytest.fixture(scope="module")
def exact_cache(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(world.teacher, tmp_path_factory.mktemp("matching") / "cache", exact=True, top_k=8)


def log_probabilities(model: Path) -> list[NDArray[np.float64]]:
    """Per sample `[T, V]`, by transformers' own forward pass with the head, one sample at a time."""
    loaded, found = load_model(model), []
    for sample in load_samples(DIGITS):
        encoded = loaded.encoder.encode(sample)
        inputs = {"input_ids": encoded.input_ids[None], **encoded.image_inputs}
        with torch.inference_mode():
            logits = loaded.model(**inputs, attention_mask=torch.ones_like(encoded.input_ids)[None]).logits[0, :-1]
        rows = logits[encoded.labels[1:] != IGNORED, : loaded.encoder.vocabulary_size].double().numpy()
        found.append(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))
    return found


def with_tail(kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities `[T, K]` and, as one outcome, that of all others."""
    return np.concatenate([kept, np.log1p(-np.exp(kept).sum(axis=1, keepdims=True))], axis=1)


def test_the_distance_is_that_of_both_models_own_logits_on_the_entries_kept(
    world: World, exact_cache: Path, tmp_path: Path
) -> None:
    own, theirs = log_probabilities(world.student), log_probabilities(world.teacher)
    cache = open_cache(exact_cache)
    decoded = cache.batch(cache.index_of([sample.sample_id for sample in load_samples(DIGITS)])).decode()
    assert np.isfinite(decoded.gaps).all(), "eight entries of every token"
    student, teacher = (np.take_along_axis(np.concatenate(each), decoded.ids, axis=1) for each in (own, theirs))
    shares = [np.mean(s.argmax(axis=1) == t.argmax(axis=1)) for s, t in zip(own, theirs, strict=True)]
    of_tokens = (np.exp(with_tail(teacher)) * (with_tail(teacher) - with_tail(student))).sum(axis=1)
    divergences = [part.mean() for part in np.split(of_tokens, np.cumsum([len(s) for s in own])[:-1])]
    without = scored(tmp_path / "without", settings(world.student, None))
    scores = scored(tmp_path / "with", settings(world.student, exact_cache))
    found = scores.pop("matching")
    assert scores == without, "nothing else is changed by it"
    assert found["difference_of_means"] == pytest.approx(student.mean() - teacher.mean(), rel=1e-3)
    assert found["wasserstein_1"] == pytest.approx(wasserstein_distance(teacher.ravel(), student.ravel()), rel=1e-3)
    assert found["wasserstein_1"] > abs(found["difference_of_means"]) > 0, "or one would stand for the other"
    assert found["agreement"] == pytest.approx(100 * np.mean(shares), abs=1e-9)
    assert found["forward_kl"] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert found["num_samples"] == 12


def test_the_distance_of_two_sets_is_that_of_scipy_whatever_their_order() -> None:
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(-3, 1, 501), generator.normal(-4, 3, 501)
    found = matching_distance(teacher, student)
    assert found.wasserstein_1 == pytest.approx(wasserstein_distance(teacher, student), rel=1e-12)
    assert found.difference_of_means == pytest.approx(student.mean() - teacher.mean(), rel=1e-12)
    again = matching_distance(generator.permutation(teacher), student)
    assert again.wasserstein_1 == pytest.approx(found.wasserstein_1, rel=1e-12)


def test_a_teacher_agrees_with_the_answers_that_it_wrote_itself(world: World, tmp_path: Path) -> None:
    """The cache holds no answers of the data; the benchmark's labels play no part."""
    cache = make_cache(
        world.teacher, tmp_path / "cache", exact=True, targets=("generate",), generation={"max_new_tokens": 3}
    )
    found = scored(tmp_path / "out", settings(world.teacher, cache))["matching"]
    assert (found["agreement"], found["num_samples"]) == (100, 12)
    assert max(abs(found[name]) for name in ("forward_kl", "difference_of_means", "wasserstein_1")) < 1e-4


def test_with_several_benchmarks_each_has_a_cache_in_a_folder_of_its_name(tmp_path: Path) -> None:
    scienceqa = write_scienceqa(tmp_path / "ScienceQA")
    model, caches = folder_of("llava (CLIP)"), tmp_path / "caches"
    make_cache(model, caches / "digits")
    make_cache(model, caches / "scienceqa", f"scienceqa:{tmp_path / 'ScienceQA'}?split=test")
    scores = scored(tmp_path / "out", settings(model, caches, DIGITS, scienceqa))["benchmarks"]
    counts = {name: one["matching"]["num_samples"] for name, one in scores.items()}
    assert counts == {"digits": 12, "scienceqa": 4}
    alone = scored(tmp_path / "alone", settings(model, caches / "digits"))
    assert alone == scores["digits"]


def test_a_cache_that_lacks_questions_is_refused_before_anything_is_written_or_counts_what_it_has(
    world: World, tmp_path: Path
) -> None:
    cache = make_cache(world.teacher, tmp_path / "cache", limit=7)
    with pytest.raises(MismatchError, match=r"holds no such sample \(5 of 12 samples differ.*\(on_mismatch: drop\)"):
        scored(tmp_path / "out", settings(world.student, cache))
    assert not (tmp_path / "out").exists()
    scores = scored(tmp_path / "out", settings(world.student, cache, on_mismatch="drop"))
    assert (scores["num_questions"], scores["matching"]["num_samples"]) == (12, 7)


def test_a_model_in_bf16_is_measured_in_it(world: World, exact_cache: Path, tmp_path: Path) -> None:
    exact, rounded = (
        scored(tmp_path / precision, settings(world.student, exact_cache, precision=precision))["matching"]
        for precision in ("fp32", "bf16")
    )
    assert rounded["forward_kl"] != exact["forward_kl"]
    assert rounded["forward_kl"] == pytest.approx(exact["forward_kl"], rel=0.05)


def test_a_backend_that_only_answers_cannot_measure_the_distance(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cache is given with backend vllm, which answers only: measure the dist"):
        settings(tmp_path, tmp_path, backend="vllm")

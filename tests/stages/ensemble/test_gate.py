"""Learned weights of several teachers: planted teachers are found, and nothing depends on an order."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.stages.ensemble.gate_world import Teachers, planted_teachers

from betakd_stages.data.asked import asked
from betakd_stages.ensemble.gate import fitted_weights
from betakd_stages.errors import ConfigError
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import FitSettings

NUM_SAMPLES = 800
SETTINGS = FitSettings(num_folds=2, num_fits=1, group_words=2)
NOTHING = np.zeros(NUM_SAMPLES)


def weights_of(teachers: Teachers, settings: FitSettings = SETTINGS) -> np.ndarray:
    return fitted_weights(teachers.caches, teachers.indices, teachers.samples, settings, SilentProgress())


def by_group() -> np.ndarray:
    """One teacher knows the even samples, the other one the odd ones."""
    odd = np.arange(NUM_SAMPLES) % 2
    return np.column_stack([np.where(odd, 0.1, 0.95), np.where(odd, 0.95, 0.1)])


@pytest.fixture(scope="module")
def specialists(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    """Each knows one of two question groups; the first lacks samples 0 to 9, the second 10 to 29."""
    folder = tmp_path_factory.mktemp("specialists")
    return planted_teachers(folder, by_group(), sides=NOTHING, lacks=(range(10), range(10, 30)))


@pytest.fixture(scope="module")
def specialist_weights(specialists: Teachers) -> np.ndarray:
    return weights_of(specialists)


def test_each_group_goes_to_the_teacher_that_is_right_there(specialist_weights: np.ndarray) -> None:
    both = specialist_weights[30:]
    assert both[::2, 0].mean() > 0.9
    assert both[1::2, 1].mean() > 0.9


def test_rows_sum_to_one_and_a_teacher_that_lacks_a_sample_has_no_weight_there(
    specialist_weights: np.ndarray,
) -> None:
    assert specialist_weights.dtype == np.float32
    np.testing.assert_allclose(specialist_weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(specialist_weights[:10], [[0, 1]] * 10)
    np.testing.assert_array_equal(specialist_weights[10:30], [[1, 0]] * 20)


def test_another_order_of_the_samples_changes_no_bit(specialists: Teachers, specialist_weights: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(NUM_SAMPLES)
    shuffled = dataclasses.replace(
        specialists,
        samples=[specialists.samples[place] for place in order],
        indices=specialists.indices[order],
    )
    np.testing.assert_array_equal(weights_of(shuffled), specialist_weights[order])


def test_another_order_of_the_teachers_is_another_order_of_the_columns(
    specialists: Teachers, specialist_weights: np.ndarray
) -> None:
    swapped = dataclasses.replace(
        specialists, caches=specialists.caches[::-1], indices=np.ascontiguousarray(specialists.indices[:, ::-1])
    )
    found = weights_of(swapped)[30:, ::-1]
    assert found[::2, 0].mean() == pytest.approx(specialist_weights[30::2, 0].mean(), abs=0.03)
    assert found[1::2, 1].mean() == pytest.approx(specialist_weights[31::2, 1].mean(), abs=0.03)


def test_what_only_the_teachers_features_tell_is_found_within_a_group(tmp_path: Path) -> None:
    """One question group; the sign of a feature says who is right, so one number per group would give a half."""
    sides = np.random.default_rng(2).normal(size=NUM_SAMPLES)
    knows = np.where(np.column_stack([sides > 0, sides < 0]), 0.97, 0.05)
    teachers = planted_teachers(tmp_path, knows, sides=sides, num_groups=1)
    weights = weights_of(teachers)
    clear = np.abs(sides) > 0.5
    assert weights[clear & (sides > 0), 0].mean() > 0.8
    assert weights[clear & (sides < 0), 1].mean() > 0.8


def test_a_teacher_beside_itself_has_half_of_the_weight(specialists: Teachers) -> None:
    held = specialists.indices[:, 0] >= 0
    twice = Teachers(
        [sample for sample, is_held in zip(specialists.samples, held, strict=True) if is_held],
        [specialists.caches[0]] * 2,
        np.repeat(specialists.indices[held, :1], 2, axis=1),
    )
    np.testing.assert_allclose(weights_of(twice), 0.5, atol=1e-6)


def test_one_teacher_has_all_of_the_weight(specialists: Teachers) -> None:
    alone = dataclasses.replace(specialists, caches=specialists.caches[:1], indices=specialists.indices[:, :1])
    np.testing.assert_array_equal(weights_of(alone), np.ones((NUM_SAMPLES, 1), np.float32))


def test_another_seed_gives_other_weights_of_the_same_kind(
    specialists: Teachers, specialist_weights: np.ndarray
) -> None:
    again = weights_of(specialists, SETTINGS.model_copy(update={"seed": 1}))
    assert (again != specialist_weights).any()
    np.testing.assert_allclose(again[30:].mean(axis=0), specialist_weights[30:].mean(axis=0), atol=0.05)


def test_answers_that_the_teachers_wrote_cannot_judge_them(specialists: Teachers) -> None:
    written = dataclasses.replace(specialists, samples=[asked(sample) for sample in specialists.samples])
    with pytest.raises(ConfigError, match="judged by the data's answers, .*: distil with --targets data, or weigh"):
        weights_of(written)

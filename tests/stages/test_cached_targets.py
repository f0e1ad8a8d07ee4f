"""Decoding on the device equals the cache package's own decoding in NumPy."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.world import World

from betakd_cache import CompactBatch, open_cache
from betakd_stages.caching.run import cache_teacher
from betakd_stages.distillation.cached_targets import OPTIONAL, Decoded, decoded_by_numpy, decoded_on, labels_only
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


@pytest.mark.parametrize("rule", [{}, {"exact": True}, {"top_k": 3, "top_p": 1.0}, {"top_k": 1}])
@pytest.mark.parametrize("decode", [decoded_by_numpy, functools.partial(decoded_on, torch.device("cpu"))])
def test_decoding_on_the_device_equals_decoding_in_numpy(
    world: World, tmp_path: Path, rule: dict[str, Any], decode: Callable[[CompactBatch], Decoded]
) -> None:
    settings = CacheTeacherSettings.model_validate({"teacher": str(world.teacher), "data": world.data, **rule})
    cache_teacher(settings, tmp_path / "cache", progress=SilentProgress())
    cache = open_cache(tmp_path / "cache")
    batch = cache.batch([5, 0, 40, 17])
    expected = batch.decode()
    columns, features, present = decode(batch)
    wanted = {
        "ids": expected.ids,
        "kept": np.isfinite(expected.gaps),
        "logits": -expected.gaps,
        "gold_ids": expected.token_ids,
        "gold_logit": -expected.gold_gap,
        **{name: getattr(expected, name) for name in ("tail_lse", "sample_index", *OPTIONAL)},
    }
    assert columns.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(columns[name].numpy(), values, err_msg=name)
    for name, values in expected.features.items():
        np.testing.assert_array_equal(features[name].numpy(), values)
        np.testing.assert_array_equal(present[name].numpy(), expected.present[name])


def test_a_teacher_that_says_only_the_labels_is_certain_of_them() -> None:
    targets = labels_only(torch.tensor([4, 7]), torch.tensor([0, 1]), 2, vocabulary_size=9)
    assert targets.entropy().tolist() == [0.0, 0.0]
    assert targets.gold_log_probability().tolist() == [0.0, 0.0]

"""Decoding on the device equals the cache package's own decoding in NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.world import World

from betakd_cache import open_cache
from betakd_stages.cached_targets import decode_batch, labels_only
from betakd_stages.caching import cache_teacher
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings


@pytest.mark.parametrize("rule", [{}, {"exact": True}, {"top_k": 3, "top_p": 1.0}, {"top_k": 1}])
def test_decoding_on_the_device_equals_decoding_in_numpy(world: World, tmp_path: Path, rule: dict[str, Any]) -> None:
    settings = CacheTeacherSettings.model_validate({"teacher": str(world.teacher), "data": world.data, **rule})
    cache_teacher(settings, tmp_path / "cache", progress=SilentProgress())
    cache = open_cache(tmp_path / "cache")
    batch = cache.batch([5, 0, 40, 17])
    expected = batch.decode()
    found = decode_batch(batch, cache.manifest, torch.device("cpu"))
    targets = found.targets
    np.testing.assert_array_equal(targets.ids.numpy(), expected.ids)
    np.testing.assert_array_equal(-targets.logits.numpy(), expected.gaps)
    np.testing.assert_array_equal(targets.kept.numpy(), np.isfinite(expected.gaps))
    np.testing.assert_array_equal(targets.gold_ids.numpy(), expected.token_ids)
    np.testing.assert_array_equal(-targets.gold_logit.numpy(), expected.gold_gap)
    np.testing.assert_array_equal(targets.tail_lse.numpy(), expected.tail_lse)
    np.testing.assert_array_equal(targets.tail_energy.numpy(), expected.tail_energy)
    np.testing.assert_array_equal(targets.sample_index.numpy(), expected.sample_index)
    for name, values in expected.features.items():
        np.testing.assert_array_equal(found.features[name].numpy(), values)
        np.testing.assert_array_equal(found.present[name].numpy(), expected.present[name])


def test_a_teacher_that_says_only_the_labels_is_certain_of_them() -> None:
    targets = labels_only(torch.tensor([4, 7]), torch.tensor([0, 1]), 2, vocabulary_size=9)
    assert targets.entropy().tolist() == [0.0, 0.0]
    assert targets.gold_log_probability().tolist() == [0.0, 0.0]

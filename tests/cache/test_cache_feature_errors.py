"""Features and layouts that a cache cannot hold are refused by name."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cache.featured import EXACT, LAYOUTS, RULE, SIZES, VOCABULARY, cache_of, records_of
from tests.cache.records import writer_for

from betakd_cache import CacheError, CacheRules, FeatureLayout, TokenRule


def test_a_run_of_another_layout_or_type_is_refused(tmp_path: Path) -> None:
    cache_of(tmp_path / "cache", records_of(1))
    grid = {"vision": FeatureLayout("grid:2x3", 6, 3)}
    with pytest.raises(CacheError, match=r'with feature_layouts.vision.layout = "tokens", this run has "grid:2x3"'):
        cache_of(tmp_path / "cache", [], feature_layouts=grid)
    with pytest.raises(CacheError, match=r'with feature_dtype = nothing, this run has "int8"'):
        cache_of(tmp_path / "cache", [], feature_dtype="int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"vision": np.zeros((5, 150), np.float32)}},
         r"feature 'vision' has shape \[5, 150\], expected \[6, 150\]"),
        ({"features": {"vision": np.zeros(150, np.float32)}},
         r"feature 'vision' has shape \[150\], expected \[6, 150\]"),
        ({"focus": {}}, r"the places in focus of feature 'vision' are missing, expected those of vision"),
        ({"focus": {"vision": np.arange(3), "prompt": np.arange(1)}},
         r"the places in focus of feature 'prompt' are given, expected those of vision"),
        ({"focus": {"vision": np.array([0, 1])}}, r"are \[0, 1\], expected 3 different ones below 6"),
        ({"focus": {"vision": np.array([0, 1, 1])}}, r"are \[0, 1, 1\], expected 3 different ones below 6"),
        ({"focus": {"vision": np.array([0, 1, 6])}}, r"are \[0, 1, 6\], expected 3 different ones below 6"),
        ({"focus": {"vision": np.array([0, -1, 2])}}, r"are \[0, -1, 2\], expected 3 different ones below 6"),
    ],
)  # fmt: skip
def test_features_that_do_not_fit_the_layout_are_refused_with_the_sample(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    records = records_of(3)
    wrong = dataclasses.replace(records[1], **changes)
    with (
        writer_for(tmp_path / "c", RULE, VOCABULARY, feature_sizes=SIZES, feature_layouts=LAYOUTS) as writer,
        pytest.raises(CacheError, match=rf"sample 'train/1': .*{message}; correct the teacher or reject the sample"),
    ):
        writer.extend([records[0], wrong, records[2]])


@pytest.mark.parametrize(
    "layouts",
    [
        {"sound": FeatureLayout("tokens", 3)},
        {"vision": FeatureLayout("tokens", 0)},
        {"vision": FeatureLayout("tokens", 2**16 + 1)},
        {"vision": FeatureLayout("tokens", 3, 4)},
        {"vision": FeatureLayout()},
    ],
)
def test_a_layout_that_cannot_be_stored_is_refused(layouts: dict[str, FeatureLayout]) -> None:
    with pytest.raises(CacheError, match=r"layout .* of feature .* cannot be stored; give 1 to 65536 places"):
        CacheRules(RULE, VOCABULARY, SIZES, feature_layouts=layouts)


@pytest.mark.parametrize(("rule", "dtype"), [(RULE, "int4"), (EXACT, "int8")])
def test_a_type_that_features_cannot_have_is_refused(rule: TokenRule, dtype: Any) -> None:
    with pytest.raises(CacheError, match=rf"feature_dtype is '{dtype}'; choose from float16, int8, and leave it"):
        CacheRules(rule, VOCABULARY, SIZES, feature_dtype=dtype)

"""A record or a rule that a cache cannot hold is refused in one line that names what is wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cache.records import make_records, record_of, writer_for

from betakd_cache import CacheError, CacheWriter, TeacherRecord, TokenRule

RULE = TokenRule(top_k=4, top_p=1.0)
LOGITS = np.array([[0.0, -1.0, -2.0, -3.0, -4.0, -5.0], [-2.0, 0.0, -1.0, -7.0, -6.0, -5.0]])
FEATURES = {"vision": np.ones(12, np.float32)}
GOOD = record_of("cat", LOGITS, np.array([1, 3]), RULE, FEATURES, {"category": "animals"})


def other(**fields: Any) -> TeacherRecord:
    """The good record with whole fields replaced."""
    return dataclasses.replace(GOOD, **fields)


def changed(name: str, place: int, value: float) -> TeacherRecord:
    """The good record with one number of one field replaced."""
    array = getattr(GOOD, name).copy()
    array.reshape(-1)[place] = value
    return dataclasses.replace(GOOD, **{name: array})


def test_the_good_record_is_taken(tmp_path: Path) -> None:
    with writer_for(tmp_path / "cache", RULE, 6) as writer:
        writer.append(GOOD)
    assert GOOD.ids.tolist() == [0, 1, 2, 3, 1, 2, 0, 3]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (other(token_ids=np.zeros(0, int)), "it has no supervised token, at least one is needed"),
        (other(gaps=GOOD.gaps[1:]), r"gaps has shape \[7\], expected \[8\]"),
        (other(tail_lse=GOOD.tail_lse[:, :1]), r"tail_lse has shape \[2, 1\], expected \[2, 2\]"),
        (other(logit_mean=None), "logit_mean is missing, but the cache was opened with"),
        (changed("token_ids", 0, 6), "token_ids reach from 3 to 6, expected 0 to 5"),
        (changed("ids", 0, -1), "ids reach from -1 to 3, expected 0 to 5"),
        (changed("gaps", 2, np.nan), "gaps fall within a token or hold a NaN, expected ascending order"),
        (changed("gaps", 0, np.nan), "gaps reach from nan to nan, expected finite numbers of 0 or more"),
        (changed("gaps", 7, np.inf), "gaps reach from 0.0 to inf, expected finite numbers of 0 or more"),
        (changed("gaps", 0, -0.5), "gaps reach from -0.5 to 7.0, expected finite numbers of 0 or more"),
        (changed("gaps", 3, 0.25), "gaps fall within a token or hold a NaN, expected ascending order"),
        (changed("ids", 1, 5), "the gold ids of 2 tokens are kept 1 times, expected once at each token"),
        (changed("ids", 0, 1), "the gold ids of 2 tokens are kept 3 times, expected once at each token"),
        (changed("gold_gap", 1, 6.5), "gold_gap differs from the gap of the gold entry, expected the same number"),
        (changed("tail_lse", 0, np.nan), r"tail_lse reaches nan, expected finite numbers or -inf"),
        (changed("tail_energy", 0, -1), r"tail_energy reaches from -1.0 to .*, expected finite numbers from 0.0 to"),
        (changed("logit_std", 0, 1e6), r"logit_std reaches from .* to 1000000.0, expected finite numbers from 0.0 to"),
        (changed("logit_max", 0, np.inf), "logit_max reaches from .* to inf, expected finite numbers"),
        (other(features={"sound": np.ones(3)}), "feature 'sound' is not one of the cache's: vision,"),
        (other(features={"vision": np.ones(3)}), r"feature 'vision' has shape \[3\], expected \[12\]"),
        (other(features={"vision": np.full(12, 1e6)}), "feature 'vision' holds a number that is not finite or"),
        (other(row={"entropy": 1}), "row column 'entropy' holds 1; give text, a number or None under"),
        (other(row={"tags": ["a"]}), r"row column 'tags' holds \['a'\]; give text, a number or None"),
        (other(row={"seen": True}), r"row column 'seen' holds True; give text, a number or None"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_stored_is_refused(tmp_path: Path, record: TeacherRecord, message: str) -> None:
    with writer_for(tmp_path / "cache", RULE, 6) as writer:
        with pytest.raises(CacheError, match=f"^sample 'cat': {message}") as caught:
            writer.append(record)
        assert "\n" not in str(caught.value)


def test_a_batch_with_one_bad_record_is_refused_as_a_whole_and_names_the_bad_one(tmp_path: Path) -> None:
    batch = [
        dataclasses.replace(GOOD, sample_id="dog"),
        changed("ids", 0, -1),
        dataclasses.replace(GOOD, sample_id="cow"),
    ]
    with writer_for(tmp_path / "cache", RULE, 6) as writer:
        with pytest.raises(CacheError, match=r"^sample 'cat': ids reach from -1 to 3"):
            writer.extend(batch)
        with pytest.raises(CacheError, match="holds a sample twice; give every sample once"):
            writer.extend([GOOD, GOOD])
        writer.extend([batch[0], batch[2]])
    with writer_for(tmp_path / "cache", RULE, 6) as writer:
        assert writer.stored == {"dog", "cow"}


def test_a_token_with_more_entries_than_the_rule_allows_is_refused(tmp_path: Path) -> None:
    with (
        writer_for(tmp_path / "cache", dataclasses.replace(RULE, top_k=3), 6) as writer,
        pytest.raises(CacheError, match="a token keeps 4 to 4 entries, expected 1 to 3; correct the teacher or reject"),
    ):
        writer.append(GOOD)


def test_moments_are_refused_by_a_cache_that_holds_none(tmp_path: Path) -> None:
    with (
        writer_for(tmp_path / "cache", RULE, 6, logit_moments=False) as writer,
        pytest.raises(CacheError, match="logit_max is given, but the cache was opened with logit_moments=False"),
    ):
        writer.append(GOOD)


def test_an_exact_cache_holds_what_float16_does_not(tmp_path: Path) -> None:
    rule = dataclasses.replace(RULE, exact=True)
    with writer_for(tmp_path / "cache", rule, 6) as writer:
        writer.append(dataclasses.replace(changed("logit_std", 0, 1e6), features={"vision": np.full(12, 1e6)}))


def test_a_row_column_keeps_one_kind_of_value(tmp_path: Path) -> None:
    with writer_for(tmp_path / "cache", RULE, 6) as writer:
        writer.append(GOOD)
        writer.append(dataclasses.replace(GOOD, sample_id="dog", row={"category": None}))
        with pytest.raises(CacheError, match=r"'category' holds 3, which is a number, expected text as in the samples"):
            writer.append(dataclasses.replace(GOOD, sample_id="cow", row={"category": 3}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, r"top_k is 0; it must lie in 1..255, or be any count with exact storage"),
        ({"top_k": 256}, r"top_k is 256; it must lie in 1..255"),
        ({"top_p": 0.0}, "top_p is 0.0; give a probability above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5; give a probability above 0 and at most 1"),
        (
            {"temperatures": ()},
            r"temperatures are \(\) .*; give at least one temperature, all positive",
        ),
        ({"temperatures": (2.0, 1.0)}, r"temperatures are \(2.0, 1.0\) .*; give at least one"),
        ({"top_p_temperature": -1.0}, r"top_p_temperature is -1.0; give at least one"),
    ],
)
def test_an_impossible_token_rule_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        TokenRule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary_size": 1}, r"vocabulary_size is 1; it must lie in 2..16777216"),
        (
            {"feature_sizes": {"vision": 0}},
            "feature 'vision' of size 0 cannot be stored; give it a plain name",
        ),
        (
            {"feature_sizes": {"../up": 3}},
            "feature '../up' of size 3 cannot be stored; give it a plain name",
        ),
    ],
)
def test_impossible_sizes_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"vocabulary_size": 6, "feature_sizes": {}} | settings
    with pytest.raises(CacheError, match=message):
        CacheWriter.open(tmp_path / "cache", identity={}, token_rule=RULE, **arguments)


def test_the_widest_compact_rule_is_stored_whole(tmp_path: Path) -> None:
    rule = TokenRule(top_k=255, top_p=1.0)
    record = make_records(1, 400, rule)[0]
    assert record.entry_counts.max() == 255
    with writer_for(tmp_path / "cache", rule, 400) as writer:
        writer.append(record)

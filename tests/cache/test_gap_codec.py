"""Gaps as whole units: codes against a plain loop over the definition, and how far they may be off."""

import numpy as np
import pytest
from tests.cache.records import stored_by_definition

from betakd_cache.codec import decode_gaps, encode_gaps, step_table


def some_gaps(num_tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ascending gaps from 0, a few nats apart at first, for 1 to 70 ranks."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 71, num_tokens)
    rows = [np.cumsum(generator.exponential(1 / np.arange(1, count + 1))) for count in counts]
    return np.concatenate([row - row[0] for row in rows]).astype(np.float32), counts


def test_gaps_are_stored_as_near_as_their_codes_allow() -> None:
    gaps, counts = some_gaps(50)
    found = decode_gaps(*encode_gaps(gaps, counts), counts.astype(np.uint8))
    assert found.dtype == np.float32
    tokens = np.split(gaps.astype(np.float64), np.cumsum(counts)[:-1])
    np.testing.assert_array_equal(found, np.concatenate([stored_by_definition(token.tolist()) for token in tokens]))


def test_errors_do_not_add_up_from_rank_to_rank() -> None:
    gaps, counts = some_gaps(200, seed=1)
    found = decode_gaps(*encode_gaps(gaps, counts), counts.astype(np.uint8))
    rank = np.arange(len(gaps)) - np.repeat(np.cumsum(counts) - counts, counts)
    assert np.abs(found - gaps)[rank <= 3].max() <= 0.5001 / 2048
    late = np.abs(found - gaps)[rank >= 40]
    assert late.max() < 0.02
    assert np.median(late) < 0.004


@pytest.mark.parametrize("code", [0, 1, 100, 254, 255])
def test_every_step_decodes_to_a_step_that_encodes_to_itself(code: int) -> None:
    wide = 4 * 256 + 7
    gaps = (np.array([0, 300, 700, wide, wide + step_table()[code]]) / 2048).astype(np.float32)
    codes, low = encode_gaps(gaps, np.array([5]))
    assert codes.tolist() == [0, 1, 2, 4, code]
    assert low.tolist() == [[300 - 256, 700 - 512, 7]]
    np.testing.assert_array_equal(decode_gaps(codes, low, np.array([5], np.uint8)), gaps)


def test_gaps_beyond_the_largest_code_are_made_up_for_by_later_ranks() -> None:
    gaps = np.array([0, 40, 45, 50, 90, 90, 90, 1e30], np.float32)
    counts = np.array([len(gaps)])
    found = decode_gaps(*encode_gaps(gaps, counts), counts.astype(np.uint8))
    assert found[1:4].tolist() == [65_535 / 2048] * 3
    np.testing.assert_allclose(found[4:7], [48, 64, 80], atol=0.01)
    assert found[7] == pytest.approx(96, abs=0.01)


def test_tokens_of_few_entries_have_no_low_bytes() -> None:
    codes, low = encode_gaps(np.array([0, 0, 1, 0, 1, 2], np.float32), np.array([1, 2, 3]))
    assert codes.tolist() == [0, 0, 8, 0, 8, 16]
    assert low.tolist() == [[0, 0, 0]] * 3
    assert encode_gaps(np.zeros(0, np.float32), np.zeros(0, np.int64))[1].shape == (0, 3)


def test_tokens_of_few_entries_leave_those_after_them_as_they_are() -> None:
    counts = np.array([1, 5, 1, 1, 2, 6, 3, 1, 4, 1])
    rows = [np.cumsum(np.linspace(0, 3, count)) for count in counts]
    gaps = np.concatenate(rows).astype(np.float32)
    found = decode_gaps(*encode_gaps(gaps, counts), counts.astype(np.uint8))
    np.testing.assert_array_equal(found, np.concatenate([stored_by_definition(row.tolist()) for row in rows]))


def test_gaps_are_exact_where_their_sum_over_all_tokens_exceeds_32_bits() -> None:
    token = np.array([0, 10, 20, 30, 46, 62, 78, 94], np.float32)
    counts = np.full(30_000, len(token))
    found = decode_gaps(*encode_gaps(np.tile(token, len(counts)), counts), counts.astype(np.uint8))
    assert found.reshape(-1, len(token)).max(axis=1).sum() * 2048 > 2**32
    np.testing.assert_array_equal(found.reshape(-1, len(token)), np.tile(found[: len(token)], (len(counts), 1)))
    np.testing.assert_allclose(found[: len(token)], token, atol=0.01)

"""Caches of teachers that are known by their log probabilities only."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.cache.independent_reader import read_samples
from tests.cache.records import make_records, write_cache

from betakd_cache import CacheError, TokenRule, derive, open_cache

RULE = TokenRule(top_k=12, top_p=0.99, temperatures=(1.0,))
VOCABULARY = 300
RECORDS = [
    dataclasses.replace(record, tail_energy=None) for record in make_records(4, VOCABULARY, RULE, feature_sizes={})
]


def test_a_cache_without_tail_energies_says_so_and_reads_back(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", RECORDS, RULE, VOCABULARY, feature_sizes={}, tail_energies=False)
    assert "tail_energy" not in cache.manifest.statistics
    assert cache.batch([0, 1]).decode().tail_energy is None
    found = cache.record(2)
    assert found.tail_energy is None
    np.testing.assert_allclose(found.tail_lse, RECORDS[2].tail_lse, rtol=1e-6)
    again = list(read_samples(tmp_path / "cache"))
    assert ["tail_energy" in sample for sample in again] == [False] * 4


def test_its_entropy_takes_the_tail_for_one_outcome(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", RECORDS, RULE, VOCABULARY, feature_sizes={}, tail_energies=False)
    for row, record in zip(cache.rows().to_pylist(), RECORDS, strict=True):
        entropies = []
        for gaps, lse in zip(np.split(record.gaps, np.cumsum(record.entry_counts)[:-1]), record.tail_lse, strict=True):
            weights = np.concatenate([np.exp(-gaps.astype(np.float64)), np.exp(lse.astype(np.float64))])
            p = weights[weights > 0] / weights.sum()
            entropies.append(-(p * np.log(p)).sum())
        assert row["entropy"] == pytest.approx(np.mean(entropies), abs=1e-6)


def test_fewer_entries_can_be_derived_from_it(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", RECORDS, RULE, VOCABULARY, feature_sizes={}, tail_energies=False)
    derive(cache.path, tmp_path / "derived", top_k=3)
    derived = open_cache(tmp_path / "derived")
    assert not derived.manifest.rules.tail_energies
    assert derived.rows().column("entropy").to_pylist() != cache.rows().column("entropy").to_pylist()


def test_records_must_be_as_the_cache_was_opened(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="tail_energy is missing, but the cache was opened with tail_energies=True"):
        write_cache(tmp_path / "cache", RECORDS, RULE, VOCABULARY, feature_sizes={})
    two = TokenRule(top_k=12, temperatures=(1.0, 2.0))
    with pytest.raises(CacheError, match=r"temperatures are \(1.0, 2.0\) without tail energies; give one temperature"):
        write_cache(tmp_path / "other", RECORDS, two, VOCABULARY, feature_sizes={}, tail_energies=False)

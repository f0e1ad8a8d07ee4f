"""Sample sets: the same to their users, whether their samples lie in memory or are made when asked for."""

from collections.abc import Sequence

import numpy as np
import pytest

from betakd_stages.data.sample import LazySamples, Sample, SampleSet, Turn, chosen_samples

SAMPLES = tuple(Sample(f"id{number}", None, (Turn("q", str(number)),)) for number in range(10))


@pytest.mark.parametrize("positions", [range(10), np.arange(10)])
def test_lazy_samples_are_indexed_cut_and_walked_like_a_tuple(positions: range) -> None:
    lazy = SampleSet("lazy", LazySamples(SAMPLES.__getitem__, positions))
    eager = SampleSet("eager", SAMPLES)
    assert len(lazy) == 10
    assert list(lazy) == list(SAMPLES)
    assert lazy.fingerprint == eager.fingerprint
    assert lazy[-1] == SAMPLES[-1]
    for cut in (slice(None, 3), slice(1, None, 3), slice(None, None, -1), slice(8, 2), slice(0, None)):
        assert tuple(lazy[cut]) == SAMPLES[cut]
        assert len(lazy[cut]) == len(SAMPLES[cut])
    assert tuple(lazy[2:8][::2][1:]) == SAMPLES[2:8][::2][1:]
    with pytest.raises(IndexError):
        lazy[10]


def test_nothing_is_made_before_it_is_asked_for() -> None:
    asked: list[int] = []

    def make(position: int) -> Sample:
        asked.append(position)
        return SAMPLES[position]

    lazy: Sequence[Sample] = LazySamples(make, range(10))
    chosen = chosen_samples(lazy[::2], [3, 0])
    assert asked == []
    assert [sample.sample_id for sample in chosen] == ["id6", "id0"]
    assert asked == [6, 0]


def test_an_index_error_while_a_sample_is_made_does_not_end_the_walk_in_silence() -> None:
    def broken(position: int) -> Sample:
        raise IndexError("inside")

    with pytest.raises(IndexError, match="inside"):
        list(LazySamples(broken, range(10)))


def test_no_samples_can_be_chosen() -> None:
    assert list(chosen_samples(SAMPLES, [])) == []

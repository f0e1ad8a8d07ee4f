"""Which samples go into which step, however a step is shared out."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from betakd_stages.data.sample import LoadedImage, Sample, Turn
from betakd_stages.distillation.batches import (
    WINDOW_STEPS,
    RunBatches,
    StepShape,
    grouping_sizes,
    num_steps,
    step_shape,
)
from betakd_stages.errors import ConfigError
from betakd_stages.settings import TrainingSettings

NUM_SAMPLES, NUM_STEPS = 50, 30


def steps_of(shape: StepShape, sizes: NDArray[np.int64] | None = None, seed: int = 0) -> list[list[int]]:
    """The samples of every step, put together from the batches of all processes, sorted."""
    processes = [
        list(RunBatches(NUM_SAMPLES, shape, num_steps=NUM_STEPS, process_index=index, seed=seed, sizes=sizes))
        for index in range(shape.num_processes)
    ]
    assert {len(batches) for batches in processes} == {NUM_STEPS * shape.accumulation}
    assert {len(batch) for batches in processes for batch in batches} == {shape.batch_size}
    steps: list[list[int]] = [[] for _ in range(NUM_STEPS)]
    for batches in processes:
        for place, batch in enumerate(batches):
            steps[place // shape.accumulation] += batch
    return [sorted(step) for step in steps]


@pytest.mark.parametrize("sizes", [None, np.arange(NUM_SAMPLES) % 7])
def test_a_step_has_the_same_samples_however_it_is_shared_out(sizes: NDArray[np.int64] | None) -> None:
    expected = steps_of(StepShape(12, 1, 1), sizes)
    for batch_size, accumulation, processes in [(6, 1, 2), (1, 12, 1), (2, 3, 2), (1, 1, 12), (4, 3, 1)]:
        assert steps_of(StepShape(batch_size, accumulation, processes), sizes) == expected
    assert steps_of(StepShape(12, 1, 1), sizes, seed=1) != expected


def test_every_sample_comes_once_before_any_comes_again() -> None:
    """Across steps: 12 is no divisor of 50."""
    batches = RunBatches(NUM_SAMPLES, StepShape(12, 1, 1), num_steps=NUM_STEPS, process_index=0, seed=3)
    order = list(itertools.chain.from_iterable(batches))
    epochs = [order[start : start + NUM_SAMPLES] for start in range(0, 7 * NUM_SAMPLES, NUM_SAMPLES)]
    assert all(sorted(epoch) == list(range(NUM_SAMPLES)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_step_may_be_larger_than_the_data() -> None:
    batches = RunBatches(5, StepShape(12, 1, 1), num_steps=1, process_index=0, seed=0)
    assert sorted(np.bincount(next(iter(batches)))) == [2, 2, 2, 3, 3]


def test_grouped_steps_hold_samples_of_like_size_and_the_largest_come_first() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 64 * 100)
    shape = StepShape(4, 1, 2)
    plain, grouped = (
        RunBatches(len(sizes), shape, num_steps=800, process_index=0, seed=0, sizes=given) for given in (None, sizes)
    )

    def padding(batches: RunBatches) -> float:
        """The share of a padded batch that is padding."""
        rows = np.array([sizes[step] for step in batches.steps()])
        return float(1 - rows.sum() / (rows.max(axis=1).sum() * shape.num_samples))

    assert padding(plain) > 0.4
    assert padding(grouped) < 0.02
    first = next(iter(grouped.steps()))
    window = np.concatenate(list(itertools.islice(grouped.steps(), WINDOW_STEPS)))
    assert sorted(sizes[first]) == sorted(np.sort(sizes[window])[-shape.num_samples :])
    assert sorted(np.concatenate(list(grouped.steps()))) == list(range(len(sizes)))


def test_processes_get_batches_of_like_size() -> None:
    sizes = np.arange(1, 65)
    shape = StepShape(2, 2, 4)
    processes = [
        list(RunBatches(64, shape, num_steps=4, process_index=index, seed=0, sizes=sizes)) for index in range(4)
    ]
    for together in zip(*processes, strict=True):
        assert np.ptp([sizes[batch].max() for batch in together]) <= 3


class SomeImage:
    def load(self) -> LoadedImage:
        raise AssertionError("sizes need no image")

    def sha256(self) -> str:
        raise AssertionError("sizes need no image")


def test_sizes_set_samples_with_and_without_image_apart() -> None:
    samples = [
        Sample(str(number), SomeImage() if number % 2 else None, (Turn("q" * (10 + number), "a"),))
        for number in range(20)
    ]
    assert grouping_sizes(samples, "nothing") is None
    lengths = grouping_sizes(samples, "length")
    assert lengths is not None
    assert lengths.tolist() == [11 + number for number in range(20)]
    sizes = grouping_sizes(samples, "modality")
    assert sizes is not None
    order = np.argsort(sizes).tolist()
    assert order == [*range(0, 20, 2), *range(1, 20, 2)]


def test_the_size_of_a_step_of_all_processes_gives_the_accumulation() -> None:
    assert step_shape(TrainingSettings(batch_size=4, accumulation=2), 3) == StepShape(4, 2, 3)
    assert step_shape(TrainingSettings(batch_size=4, global_batch_size=64), 8) == StepShape(4, 2, 8)
    with pytest.raises(ConfigError, match="is 64, no multiple of batch_size x processes = 4 x 3 = 12: change one"):
        step_shape(TrainingSettings(batch_size=4, global_batch_size=64), 3)
    with pytest.raises(ValueError, match="accumulation and global_batch_size are both given: keep one"):
        TrainingSettings(accumulation=2, global_batch_size=64)


def test_an_epoch_ends_with_a_whole_step() -> None:
    """ScienceQA's 12,726 samples at 64 per step: the 199 steps of the paper's figure 5."""
    assert num_steps(TrainingSettings(), 12_726, 64) == 199
    assert num_steps(TrainingSettings(epochs=0.5), 100, 10) == 5
    assert num_steps(TrainingSettings(steps=7), 100, 10) == 7

"""Which samples go into which optimizer step: the same for a seed, however many processes and batches share a step.

Every step has the same number of samples. The samples come in one random order after the other, and a step that reaches
the end of an order takes the rest from the next: no step is smaller than the others, and none is padded.
S samples, G samples per step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from betakd_stages.data.sample import Sample
from betakd_stages.errors import ConfigError
from betakd_stages.settings import TrainingSettings

WINDOW_STEPS = 64
"""Samples of like length are sought among those of so many steps."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """How the samples of an optimizer step are shared out."""

    batch_size: int  # samples of one process that go through the model together
    accumulation: int  # such batches per step
    num_processes: int

    @property
    def num_samples(self) -> int:
        """Samples per step, G."""
        return self.batch_size * self.accumulation * self.num_processes


def step_shape(training: TrainingSettings, num_processes: int) -> StepShape:
    """How a step is shared out among these processes.

    Raises ConfigError where training.global_batch_size is no multiple of what goes through the processes together.
    """
    if training.global_batch_size is None:
        return StepShape(training.batch_size, training.accumulation, num_processes)
    together = training.batch_size * num_processes
    accumulation, rest = divmod(training.global_batch_size, together)
    if rest:
        raise ConfigError(
            f"training.global_batch_size is {training.global_batch_size}, no multiple of batch_size x processes = "
            f"{training.batch_size} x {num_processes} = {together}: change one of them"
        )
    return StepShape(training.batch_size, accumulation, num_processes)


def num_steps(training: TrainingSettings, num_samples: int, samples_per_step: int) -> int:
    """The optimizer steps of a run; an epoch that does not divide evenly ends with a whole step."""
    return training.steps or math.ceil((training.epochs or 1.0) * num_samples / samples_per_step)


class RunBatches(Sampler[list[int]]):
    """The batches of one process for a whole run: indices of samples, `accumulation` batches for every step."""

    def __init__(
        self,
        num_samples: int,
        shape: StepShape,
        *,
        num_steps: int,
        process_index: int,
        seed: int,
        sizes: NDArray[np.int64] | None = None,
    ) -> None:
        """`sizes` `[S]` is what samples are grouped by; none: batches are random."""
        self._num_samples = num_samples
        self._shape = shape
        self._num_steps = num_steps
        self._process_index = process_index
        self._seed = seed
        self._sizes = sizes

    def __len__(self) -> int:
        return self._num_steps * self._shape.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        together = self._shape.batch_size * self._shape.num_processes
        for step in self.steps():
            for start in range(0, len(step), together):
                # Every process takes one in so many, so that grouped samples are of like length in all of them.
                yield step[start + self._process_index : start + together : self._shape.num_processes].tolist()

    def steps(self) -> Iterator[NDArray[np.int64]]:
        """The samples `[G]` of each step, of all processes."""
        per_step = self._shape.num_samples
        order = self._order()
        if self._sizes is None:
            for _ in range(self._num_steps):
                yield np.array([next(order) for _ in range(per_step)])
            return
        for first in range(0, self._num_steps, WINDOW_STEPS):
            num = min(WINDOW_STEPS, self._num_steps - first)
            window = np.array([next(order) for _ in range(num * per_step)])
            grouped = window[np.argsort(self._sizes[window], kind="stable")].reshape(num, per_step)
            turn = np.random.default_rng([self._seed, first, 1]).permutation(num)
            if first == 0:  # the largest step first: memory runs short at once or, most likely, never
                turn = np.concatenate([[num - 1], turn[turn != num - 1]])
            yield from grouped[turn]

    def _order(self) -> Iterator[int]:
        """Samples without end: each once in random order, then each once in another."""
        epoch = 0
        while True:
            yield from np.random.default_rng([self._seed, epoch]).permutation(self._num_samples)
            epoch += 1


def grouping_sizes(samples: Sequence[Sample], group_by: str) -> NDArray[np.int64] | None:
    """What samples are grouped by `[S]`; None for "nothing".

    "length" is the number of characters, which tokens are about proportional to: nothing is tokenised or read.
    "modality" sets samples without image apart, those with one lie behind them, and each kind is sorted by length.
    """
    if group_by == "nothing":
        return None
    lengths = np.array([sum(len(turn.question) + len(turn.answer) for turn in sample.turns) for sample in samples])
    if group_by == "modality":
        lengths += np.array([sample.image is not None for sample in samples]) * (lengths.max(initial=0) + 1)
    return lengths

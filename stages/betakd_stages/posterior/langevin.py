"""Snapshots of weights from their posterior, by stochastic gradient Langevin dynamics.

The objective of N samples is the negative log of a posterior, U = N * mean objective: what the labels say, and the
teacher-informed Gibbs prior of the energies (paper, section 3). A sample's objective is a mean over its tokens, so an
answer of T tokens enters with its likelihood to the power 1/T. With steps eps = 2 * rate / N Langevin dynamics (Welling
and Teh 2011, eq. 4) are descent on the mean objective with noise of the right size beside it,

    weights <- weights - rate * gradient + sqrt(2 * rate * temperature / N) * xi,    xi ~ N(0, 1),

whose weights are draws from exp(-U / temperature) as the rate goes to 0. At temperature 0 the noise of the batches is
all there is: the SGD of SWAG (Maddox et al. 2019), whose spread is the learning rate's.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from betakd_stages.settings.posterior import PosteriorSettings


def snapshots(
    parameters: Sequence[nn.Parameter],
    centre: Sequence[Tensor],
    gradients: Callable[[int], Iterable[float]],
    settings: PosteriorSettings,
    *,
    num_samples: int,
    seed: int,
    num_done: int = 0,
) -> Iterator[float]:
    """Once for each snapshot that is left, while the parameters are that snapshot, the mean objective on the way to it.

    `gradients` takes a seed and gives, for each of `settings.every_steps` steps, the mean objective of a batch, whose
    gradients it leaves at the parameters. `centre` is what a Gaussian prior is around. A snapshot depends on the one
    before and on the seed alone, so that one may go on behind `num_done` of them. Seeds torch's random numbers.
    """
    for index in range(num_done, settings.count):
        seed_of_snapshot = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
        torch.manual_seed(seed_of_snapshot)
        objectives = []
        for objective in gradients(seed_of_snapshot):
            langevin_step(parameters, centre, settings, num_samples)
            objectives.append(objective)
        yield statistics.fmean(objectives)


@torch.no_grad()
def langevin_step(
    parameters: Sequence[nn.Parameter], centre: Sequence[Tensor], settings: PosteriorSettings, num_samples: int
) -> None:
    """Nothing; moves the parameters by the gradients at them, the prior's and noise, and takes the gradients away."""
    rate = settings.learning_rate
    noise = math.sqrt(2 * rate * settings.temperature / num_samples)
    for parameter, mode in zip(parameters, centre, strict=True):
        moved = noise * torch.randn_like(parameter)
        if parameter.grad is not None:  # none where a batch says nothing of it, as texts alone do of a projector
            moved.add_(parameter.grad, alpha=-rate)
        if settings.prior_deviation is not None:
            moved.add_(parameter - mode, alpha=-rate / (num_samples * settings.prior_deviation**2))
        parameter.add_(moved)
        parameter.grad = None

"""The chance pi that a label came from the teacher and not from the background, by maximum likelihood on noisy labels.

    pi_i = sigmoid(network(inputs_i, group_i))
    maximise the sum over samples and tokens of log[pi_i p_T(y) + (1 - pi_i) b(y)]

A sample is judged by networks that were fitted without it: folds are of ids, by their hashes. Tokens that anybody can
predict have p_T = b and count for nothing; an answer of one token gives log[pi p_T + (1 - pi) b] of that token.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from betakd_stages.settings import TrustSettings
from betakd_stages.trust.evidence import Evidence, Floats
from betakd_stages.trust.groups import Groups

HIDDEN_SIZE = 16
BATCH_SIZE = 256
LEARNING_RATE = 1e-2
LEAST_STEPS, MOST_STEPS = 100, 2000
EPOCHS = 16
"""Within these steps: 100 for 1,600 samples and fewer, and no more than 2,000 however many there are."""


def log_likelihood(logits: Tensor, teacher: Tensor, background: Tensor) -> Tensor:
    """`[S]`, the log likelihood of labels with log probabilities `[S, T]` under pi = sigmoid(logits `[S]`)."""
    of_teacher = logsigmoid(logits)[:, None] + teacher
    of_background = logsigmoid(-logits)[:, None] + background
    return torch.logaddexp(of_teacher, of_background).sum(dim=1)


def cross_fitted(evidence: Evidence, groups: Groups, folds: NDArray[np.int64], settings: TrustSettings) -> Floats:
    """pi `[S]`, each sample's the mean of networks that saw no sample of its fold `[S]`."""
    indicators = np.eye(len(groups.names), dtype=np.float32)[groups.of_sample]
    inputs = torch.from_numpy(np.column_stack([evidence.inputs, indicators]))
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0).clamp(min=1e-6)
    teacher, background = torch.from_numpy(evidence.teacher), torch.from_numpy(evidence.background)
    trust = torch.zeros(len(inputs))
    for fold in range(settings.num_folds):
        held_out = torch.from_numpy(np.flatnonzero(folds == fold))
        seen = torch.from_numpy(np.flatnonzero(folds != fold))
        for repetition in range(settings.num_fits):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + fold * 1009 + repetition)
            network = fit(inputs, teacher, background, seen, generator, settings.weight_decay)
            with torch.no_grad():
                trust[held_out] += torch.sigmoid(network(inputs[held_out])[:, 0]) / settings.num_fits
    return trust.numpy()


def fit(
    inputs: Tensor, teacher: Tensor, background: Tensor, seen: Tensor, generator: torch.Generator, weight_decay: float
) -> nn.Module:
    """The network from inputs `[S, F]` to a logit `[S, 1]`, fitted to the samples of the places `seen`."""
    network = _network(inputs.shape[1], generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
    num_steps = min(max(EPOCHS * len(seen) // BATCH_SIZE, LEAST_STEPS), MOST_STEPS)
    for _ in range(num_steps):
        batch = seen[torch.randint(len(seen), (BATCH_SIZE,), generator=generator)]
        logits = network(inputs[batch])[:, 0]
        loss = -log_likelihood(logits, teacher[batch], background[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def _network(size: int, generator: torch.Generator) -> nn.Sequential:
    """Two layers, drawn from the generator as torch draws its own."""
    network = nn.Sequential(nn.Linear(size, HIDDEN_SIZE), nn.Tanh(), nn.Linear(HIDDEN_SIZE, 1))
    for parameter, fan_in in zip(network.parameters(), (size, size, HIDDEN_SIZE, HIDDEN_SIZE), strict=True):
        nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
    return network

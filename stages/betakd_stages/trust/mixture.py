"""The chance pi that a label came from the teacher and not from the background, by maximum likelihood on noisy labels.

    pi_i = sigmoid(logit of the group + network(inputs_i))
    maximise the sum over samples and tokens of log[pi_i p_T(y) + (1 - pi_i) b(y)]

A sample is judged by networks that were fitted without it: folds are of ids, by their hashes. Tokens that anybody can
predict have p_T = b and count for nothing; an answer of one token gives log[pi p_T + (1 - pi) b] of that token.
"""

from dataclasses import dataclass

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
LEARNING_RATE, GROUP_LEARNING_RATE = 1e-2, 5e-2
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
    inputs = torch.from_numpy(evidence.inputs)
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0).clamp(min=1e-6)
    everything = Fitted(
        inputs,
        torch.from_numpy(groups.of_sample).long(),
        torch.from_numpy(evidence.teacher),
        torch.from_numpy(evidence.background),
    )
    pi = torch.zeros(len(inputs))
    for fold in range(settings.num_folds):
        held_out = torch.from_numpy(np.flatnonzero(folds == fold))
        seen = everything.taken(torch.from_numpy(np.flatnonzero(folds != fold)))
        for repetition in range(settings.num_fits):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + fold * 1009 + repetition)
            network = fit(seen, len(groups.names), generator, settings.weight_decay)
            with torch.no_grad():
                logits = network(inputs[held_out], everything.groups[held_out])
            pi[held_out] += torch.sigmoid(logits) / settings.num_fits
    return pi.numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Inputs `[S, F]`, groups `[S]` and log probabilities `[S, T]` of teacher and background, as tensors."""

    inputs: Tensor
    groups: Tensor
    teacher: Tensor
    background: Tensor

    def taken(self, places: Tensor) -> "Fitted":
        """The samples of these places."""
        return Fitted(self.inputs[places], self.groups[places], self.teacher[places], self.background[places])


class GroupedNetwork(nn.Module):
    """A logit for each sample: that of its group, and how far a small network puts the sample above or below it."""

    def __init__(self, size: int, num_groups: int, generator: torch.Generator) -> None:
        super().__init__()
        self.of_group = nn.Parameter(torch.zeros(num_groups))
        self.first, self.last = nn.Linear(size, HIDDEN_SIZE), nn.Linear(HIDDEN_SIZE, 1, bias=False)
        for parameter in self.first.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5, generator=generator)
        nn.init.zeros_(self.last.weight)

    def forward(self, inputs: Tensor, groups: Tensor) -> Tensor:
        """`[S]`, of inputs `[S, F]` in groups `[S]`."""
        return self.of_group[groups] + self.last(torch.tanh(self.first(inputs)))[:, 0]


def fit(samples: Fitted, num_groups: int, generator: torch.Generator, weight_decay: float) -> GroupedNetwork:
    """The network fitted to these samples; weight decay draws it towards one logit per group."""
    network = GroupedNetwork(samples.inputs.shape[1], num_groups, generator)
    layers = [*network.first.parameters(), *network.last.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [network.of_group], "lr": GROUP_LEARNING_RATE, "weight_decay": 0.0},
            {"params": layers, "lr": LEARNING_RATE, "weight_decay": weight_decay},
        ]
    )
    num_samples = len(samples.inputs)
    for _ in range(min(max(EPOCHS * num_samples // BATCH_SIZE, LEAST_STEPS), MOST_STEPS)):
        batch = samples.taken(torch.randint(num_samples, (BATCH_SIZE,), generator=generator))
        loss = -log_likelihood(network(batch.inputs, batch.groups), batch.teacher, batch.background).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network

"""The chances pi that a label came from a teacher and not from the background, by maximum likelihood on noisy labels.

    pi_i = softmax over T teachers and the background of (logits of the group + network(inputs_i), 0)
    maximise the sum over samples and tokens of log[sum over t of pi_it p_t(y) + pi_i0 b(y)]

One teacher is `cache trust`, pi then a sigmoid; several share the labels among them, and one that lacks a sample has no
part in it. A sample is judged by networks that were fitted without it: folds are of ids, by their hashes. Tokens that
anybody can predict have p_t = b and count for nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from betakd_stages.settings import FitSettings
from betakd_stages.trust.evidence import Evidence, Floats
from betakd_stages.trust.groups import Groups
from betakd_stages.trust.scores import better_by_group

HIDDEN_SIZE = 16
BATCH_SIZE = 256
LEARNING_RATE, GROUP_LEARNING_RATE = 1e-2, 5e-2
LEAST_STEPS, MOST_STEPS = 100, 2000
EPOCHS = 16
"""Within these steps: 100 for 1,600 samples and fewer, and no more than 2,000 however many there are."""


def fitted_shares(evidence: Evidence, groups: Groups, hashes: NDArray[np.uint64], settings: FitSettings) -> Floats:
    """pi `[S, T]` of samples in the order of their ids' hashes `[S]`, in each group from a network or from one number
    per teacher, whichever predicts the group's held-out labels better."""
    folds = (hashes % np.uint64(settings.num_folds)).astype(np.int64)
    candidates = [cross_fitted(inputs, groups, folds, settings) for inputs in (evidence, evidence.alike())]
    return better_by_group(candidates, evidence, groups)


def log_shares(logits: Tensor, held: Tensor) -> Tensor:
    """log pi `[S, T + 1]` of the teachers, -inf where one lacks the sample (held bool `[S, T]`), and of the background,
    from the teachers' logits `[S, T]`."""
    return nn.functional.pad(logits.masked_fill(~held, -torch.inf), (0, 1)).log_softmax(dim=1)


def log_likelihood(shares: Tensor, sources: Tensor) -> Tensor:
    """`[S]`, the log likelihood of labels whose log probabilities under the teachers and the background are `sources`
    `[S, T + 1, L]`, for log pi `[S, T + 1]`."""
    return torch.logsumexp(shares[:, :, None] + sources, dim=1).sum(dim=1)


def cross_fitted(evidence: Evidence, groups: Groups, folds: NDArray[np.int64], settings: FitSettings) -> Floats:
    """pi `[S, T]`, each sample's the mean of networks that saw no sample of its fold `[S]`."""
    inputs = torch.from_numpy(evidence.inputs)
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0).clamp(min=1e-6)
    everything = Fitted(
        inputs,
        torch.from_numpy(groups.of_sample).long(),
        torch.from_numpy(np.concatenate([evidence.teachers, evidence.background[:, None]], axis=1)),
        torch.from_numpy(evidence.held),
    )
    pi = torch.zeros(evidence.held.shape)
    for fold in range(settings.num_folds):
        held_out = torch.from_numpy(np.flatnonzero(folds == fold))
        seen, judged = everything.taken(torch.from_numpy(np.flatnonzero(folds != fold))), everything.taken(held_out)
        for repetition in range(settings.num_fits):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + fold * 1009 + repetition)
            network = fit(seen, len(groups.names), generator, settings.weight_decay)
            with torch.no_grad():
                pi[held_out] += network(judged)[:, :-1].exp() / settings.num_fits
    return pi.numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Inputs `[S, F]`, groups `[S]`, log probabilities `[S, T + 1, L]` of teachers and background, and which teachers
    have the sample, bool `[S, T]`, as tensors."""

    inputs: Tensor
    groups: Tensor
    sources: Tensor
    held: Tensor

    def taken(self, places: Tensor) -> "Fitted":
        """The samples of these places."""
        return Fitted(self.inputs[places], self.groups[places], self.sources[places], self.held[places])


class GroupedNetwork(nn.Module):
    """A logit for each sample and teacher: that of its group, and how far a small network puts the sample from it."""

    def __init__(self, size: int, num_groups: int, num_teachers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.of_group = nn.Parameter(torch.zeros(num_groups, num_teachers))
        self.first, self.last = nn.Linear(size, HIDDEN_SIZE), nn.Linear(HIDDEN_SIZE, num_teachers, bias=False)
        for parameter in self.first.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5, generator=generator)
        nn.init.zeros_(self.last.weight)

    def forward(self, samples: Fitted) -> Tensor:
        """log pi `[S, T + 1]`, the background's last."""
        logits = self.of_group[samples.groups] + self.last(torch.tanh(self.first(samples.inputs)))
        return log_shares(logits, samples.held)


def fit(samples: Fitted, num_groups: int, generator: torch.Generator, weight_decay: float) -> GroupedNetwork:
    """The network fitted to these samples; weight decay draws it towards one logit per group and teacher."""
    network = GroupedNetwork(samples.inputs.shape[1], num_groups, samples.held.shape[1], generator)
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
        loss = -log_likelihood(network(batch), batch.sources).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network

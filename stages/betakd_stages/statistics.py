"""The student's numbers at the supervised tokens: all that any energy needs, in one pass over the vocabulary.

The tail (every token the teacher did not keep) is the primitive: its logsumexp per temperature, and optionally its
mean logit and the mean and variance over the vocabulary. Everything else is ordinary autograd on `[N, K + few]`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from betakd_stages.errors import MismatchError
from betakd_stages.tail import Temperature
from betakd_stages.targets import TeacherTargets


@dataclass(frozen=True, slots=True)
class Head:
    """A language-model head: logits are `cap(scale * (hidden @ weight.T + bias))`, `cap` being soft or none."""

    weight: Tensor
    """`[V', D]`, V' at least the vocabulary's real size; padded rows beyond it are cut off."""
    bias: Tensor | None = None
    """`[V']`."""
    logit_scale: float = 1.0
    soft_cap: float | None = None
    """Logits become `soft_cap * tanh(logits / soft_cap)`."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Which statistics an energy asks for; `|` is the union. Temperature 1 is always there, for the cross-entropy."""

    temperatures: tuple[float, ...] = (1.0,)
    """Where the tail's logsumexp is wanted."""
    learned: Mapping[object, Tensor] = field(default_factory=dict)
    """Temperatures per token, float `[N]`, that get a gradient, each under the energy that owns it."""
    tail_means: bool = False
    """The tail's mean logit at every temperature (entropies)."""
    moments: bool = False
    """Mean and variance over the vocabulary."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            temperatures=tuple(sorted({*self.temperatures, *other.temperatures, 1.0})),
            learned={**self.learned, **other.learned},
            tail_means=self.tail_means or other.tail_means,
            moments=self.moments or other.moments,
        )

    @property
    def columns(self) -> tuple[Temperature, ...]:
        """The M temperatures in the order of the columns of `StudentStatistics.tail_lse`."""
        return (*self.temperatures, *self.learned.values())


@dataclass(frozen=True, slots=True)
class StudentStatistics:
    """The student's numbers at N supervised tokens, float32, or float64 where the hidden states are float64."""

    needs: Needs
    """What was asked for."""
    kept: Tensor
    """bool `[N, K]`, the teacher's."""
    kept_logits: Tensor
    """`[N, K]`, logits at the teacher's kept ids; 0 at padding."""
    gold_logit: Tensor
    """`[N]`, gathered on its own: the label need not be among the kept ids."""
    tail_lse: Tensor
    """`[N, M]`, logsumexp over the tokens not kept; -inf where everything is kept."""
    tail_mean: Tensor | None
    """`[N, M]`, mean logit over the tail under softmax(z / temperature), 0 where it is empty; carries no gradient."""
    logit_mean: Tensor | None
    """`[N]`, over the vocabulary."""
    logit_variance: Tensor | None
    """`[N]`, over the vocabulary, population variance."""

    def tail_lse_at(self, temperature: Temperature) -> Tensor:
        """The tail's logsumexp `[N]` at a temperature that was asked for."""
        return self.tail_lse[:, self._column(temperature)]

    def tail_mean_at(self, temperature: Temperature) -> Tensor:
        """The tail's mean logit `[N]` at a temperature that was asked for, without gradient."""
        assert self.tail_mean is not None, "tail_means was not asked for"
        return self.tail_mean[:, self._column(temperature)]

    def log_partition(self, temperature: Temperature = 1.0) -> Tensor:
        """Logsumexp over the vocabulary, `[N]`."""
        return torch.logaddexp(torch.logsumexp(self._scaled_logits(temperature), dim=1), self.tail_lse_at(temperature))

    def log_probabilities(self, temperature: Temperature = 1.0) -> Tensor:
        """Log-probabilities at the kept ids, `[N, K]`, -inf at padding."""
        return self._scaled_logits(temperature) - self.log_partition(temperature).unsqueeze(1)

    def tail_log_probability(self, temperature: Temperature = 1.0) -> Tensor:
        """Log of the probability that the token is none of the kept, `[N]`; -inf where everything is kept."""
        return self.tail_lse_at(temperature) - self.log_partition(temperature)

    def cross_entropy(self) -> Tensor:
        """Minus the log-probability of the label, `[N]`. Source: paper, section 3.1."""
        return self.log_partition() - self.gold_logit

    def entropy(self) -> Tensor:
        """Entropy of the student over the whole vocabulary in nats, `[N]`, without gradient."""
        log_probabilities = self.log_probabilities().detach()
        kept_part = (log_probabilities.exp() * self.kept_logits.detach()).sum(dim=1)
        tail_part = self.tail_log_probability().detach().exp() * self.tail_mean_at(1.0)
        return self.log_partition().detach() - kept_part - tail_part

    def _scaled_logits(self, temperature: Temperature) -> Tensor:
        scale = temperature.unsqueeze(1) if isinstance(temperature, Tensor) else temperature
        return (self.kept_logits / scale).masked_fill(~self.kept, -torch.inf)

    def _column(self, temperature: Temperature) -> int:
        for column, held in enumerate(self.needs.columns):
            # A learned temperature is known by identity: comparing values would synchronise with the device.
            if held is temperature or (
                not isinstance(held, Tensor) and not isinstance(temperature, Tensor) and held == temperature
            ):
                return column
        raise AssertionError(f"temperature {temperature} was not asked for")


def student_statistics(
    hidden: Tensor, head: Head, targets: TeacherTargets, needs: Needs | None = None
) -> StudentStatistics:
    """The student's statistics at the tokens of `targets`, differentiable in `hidden` `[N, D]` and the head.

    Raises MismatchError where the head has fewer rows than the vocabulary has tokens.
    """
    needs = Needs() | (needs or Needs())
    if head.weight.shape[0] < targets.vocabulary_size:
        raise MismatchError(
            f"the student's head has {head.weight.shape[0]} rows but the teacher's vocabulary has "
            f"{targets.vocabulary_size} tokens: use a student with the teacher's tokenizer"
        )
    logits = _logits(hidden, head, targets.vocabulary_size)
    kept = targets.kept
    # Padding must not hit id 0: it gathers and masks the first kept entry a second time.
    ids = torch.where(kept, targets.ids, targets.ids[:, :1])
    tail = logits.scatter(1, ids, -torch.inf)
    columns = [_lse(tail / _column_scale(temperature)) for temperature in needs.columns]
    return StudentStatistics(
        needs=needs,
        kept=kept,
        kept_logits=logits.gather(1, ids).masked_fill(~kept, 0.0),
        gold_logit=logits.gather(1, targets.gold_ids.unsqueeze(1)).squeeze(1),
        tail_lse=torch.stack(columns, dim=1),
        tail_mean=_tail_means(tail, needs) if needs.tail_means else None,
        logit_mean=logits.mean(dim=1) if needs.moments else None,
        logit_variance=logits.var(dim=1, correction=0) if needs.moments else None,
    )


def _logits(hidden: Tensor, head: Head, vocabulary_size: int) -> Tensor:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden.to(dtype) @ head.weight[:vocabulary_size].to(dtype).T
    if head.bias is not None:
        logits = logits + head.bias[:vocabulary_size].to(dtype)
    logits = logits * head.logit_scale
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def _lse(tail: Tensor) -> Tensor:
    """Logsumexp `[N]` whose gradient is 0, not NaN, where every entry is -inf."""
    empty = torch.isneginf(tail).all(dim=1)
    return torch.logsumexp(tail.masked_fill(empty.unsqueeze(1), 0.0), dim=1).masked_fill(empty, -torch.inf)


def _column_scale(temperature: Temperature) -> Temperature:
    return temperature.unsqueeze(1) if isinstance(temperature, Tensor) else temperature


def _tail_means(tail: Tensor, needs: Needs) -> Tensor:
    with torch.no_grad():
        finite = tail.masked_fill(torch.isneginf(tail), 0.0)
        means = [
            (torch.softmax(tail / _column_scale(temperature), dim=1).nan_to_num(0.0) * finite).sum(dim=1)
            for temperature in needs.columns
        ]
    return torch.stack(means, dim=1)

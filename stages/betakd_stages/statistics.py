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
from betakd_stages.vocabulary_pass import VocabularyPass
from betakd_stages.vocabulary_tiles import PassPlan

SAVE_BYTES = 64 * 2**20
ROW_CHUNK = 8192
"""With a trainable head, more chunks cost: its gradient is streamed once for each."""


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
    """Where the tail's logsumexp is wanted, largest first."""
    learned: Mapping[object, Tensor] = field(default_factory=dict)
    """Temperatures per token, float `[N]`, that get a gradient, each under the energy that owns it."""
    tail_means: bool = False
    """The tail's mean logit at every temperature (entropies)."""
    moments: bool = False
    """Mean and variance over the vocabulary."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            temperatures=tuple(sorted({1.0, *map(float, (*self.temperatures, *other.temperatures))}, reverse=True)),
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
    hidden: Tensor,
    head: Head,
    targets: TeacherTargets,
    needs: Needs | None = None,
    *,
    save_bytes: int = SAVE_BYTES,
    row_chunk: int = ROW_CHUNK,
    tile_columns: int | None = None,
) -> StudentStatistics:
    """The student's statistics at the tokens of `targets`, differentiable in `hidden` `[N, D]` and the head.

    Matrix products accumulate in float32 (float64 for float64 hidden states). `save_bytes` of logits may be kept for
    the backward pass, which computes the rest again; `row_chunk` tokens go through the head at a time, `tile_columns`
    of its rows at a time (None: by size). None of the three changes the result.
    Raises MismatchError where the head has fewer rows than the vocabulary has tokens.
    """
    needs = Needs() | (needs or Needs())
    if head.weight.shape[0] < targets.vocabulary_size:
        raise MismatchError(
            f"the student's head has {head.weight.shape[0]} rows but the teacher's vocabulary has "
            f"{targets.vocabulary_size} tokens: use a student with the teacher's tokenizer"
        )
    learned = tuple(needs.learned.values())
    chunks = []
    for start in range(0, max(1, len(hidden)), row_chunk):
        rows = slice(start, start + row_chunk)
        plan = PassPlan(
            ids=targets.ids[rows],
            kept=targets.kept[rows],
            gold_ids=targets.gold_ids[rows],
            vocabulary_size=targets.vocabulary_size,
            logit_scale=head.logit_scale,
            soft_cap=head.soft_cap,
            temperatures=needs.temperatures,
            tail_means=needs.tail_means,
            moments=needs.moments,
            tile_columns=tile_columns,
            save_bytes=save_bytes * min(row_chunk, len(hidden)) // max(1, len(hidden)),
        )
        chunks.append(
            VocabularyPass.apply(plan, hidden[rows], head.weight, head.bias, *(values[rows] for values in learned))
        )
    columns = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*chunks, strict=True)]
    kept_logits, gold_logit, tail_lse, tail_mean, logit_mean, logit_variance = columns
    return StudentStatistics(
        needs=needs,
        kept=targets.kept,
        kept_logits=kept_logits,
        gold_logit=gold_logit,
        tail_lse=tail_lse,
        tail_mean=tail_mean if needs.tail_means else None,
        logit_mean=logit_mean if needs.moments else None,
        logit_variance=logit_variance if needs.moments else None,
    )

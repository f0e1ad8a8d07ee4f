"""What the teacher said about a batch of supervised tokens, and everything the energies derive from it.

Kept entries carry exact logits; all other tokens are one outcome, the tail, known by its own logsumexp and mean energy
at each temperature of a grid. The tail is never `1 - kept`: at 64 kept entries that difference is rounding noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from betakd_stages.tail import Temperature, interpolate_tail
from betakd_stages.truncation import truncate_log_probabilities, truncate_logits

CHUNK_ELEMENTS = 2**24
"""As many rows as have about this many logits go through the head at a time."""
DEVICE_CHUNK_ELEMENTS = {"cpu": 2**20}
"""`TeacherTargets.from_logits` works on as many rows at a time as have about this many logits: on a CPU as many as its
cache holds, which halves the time."""


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """The cached numbers of N supervised tokens with at most K kept entries each, on a grid of M temperatures.

    Logits are relative to the teacher's largest logit of that token, so never positive; the rest of the vocabulary
    is the "tail".
    """

    ids: Tensor
    """int64 `[N, K]`, per token sorted by logit, largest first; padding only after the kept entries."""
    kept: Tensor
    """bool `[N, K]`, False at padding."""
    logits: Tensor
    """float `[N, K]`, -inf at padding."""
    gold_ids: Tensor
    """int64 `[N]`, the label."""
    gold_logit: Tensor
    """float `[N]`, exact."""
    temperatures: tuple[float, ...]
    """The grid."""
    tail_lse: Tensor
    """float `[N, M]`, log of the sum over the tail of exp(z / temperature); -inf where everything is kept."""
    tail_energy: Tensor | None
    """float `[N, M]`, mean of -z over the tail under softmax(z / temperature); 0 where everything is kept.
    None where the cache holds none: the tail then counts as one outcome, which makes `entropy` too small by at most the
    tail's mass times the log of its number of ids."""
    vocabulary_size: int
    """The tokenizer's real size: ids are below it."""
    logit_max: Tensor | None
    """float `[N]`, the largest logit itself."""
    logit_mean: Tensor | None
    """float `[N]`, mean logit over the vocabulary, not relative to the largest."""
    logit_std: Tensor | None
    """float `[N]`, population deviation of the logits over the vocabulary."""
    sample_index: Tensor
    """int64 `[N]`, which sample of the batch each token belongs to."""
    num_samples: int
    """B; a sample may have no token."""
    trust: Tensor | None = None
    """float `[B]`, 0 to 1, how far the teacher can be believed on a sample; None where nothing needs it."""

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        gold_ids: Tensor,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        top_p_temperature: float = 1.0,
        temperatures: Sequence[float] = (1.0,),
        sample_index: Tensor | None = None,
        num_samples: int | None = None,
    ) -> "TeacherTargets":
        """The targets of full logits `[N, V]`, float32 or (from float64) float64, on the logits' device.

        Keeps everything by default; at most `top_k` entries with the gold one among them; of those only the smallest
        set that holds `top_p` of the mass at `top_p_temperature`, and the gold one. `sample_index` is zero by default.
        """
        num_tokens, vocabulary_size = logits.shape
        if sample_index is None:
            sample_index = torch.zeros_like(gold_ids)
        if num_samples is None:
            num_samples = int(sample_index.max()) + 1 if num_tokens else 0
        elements = DEVICE_CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS)
        rows = max(1, elements // vocabulary_size)
        chunks = [
            truncate_logits(
                logits[start : start + rows],
                gold_ids[start : start + rows],
                top_k=top_k,
                top_p=top_p,
                top_p_temperature=top_p_temperature,
                temperatures=tuple(temperatures),
            )
            for start in range(0, max(num_tokens, 1), rows)
        ]
        columns = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        # One host synchronisation buys tensors as narrow as the widest token.
        width = int(columns["kept"].sum(dim=1).max()) if num_tokens else columns["kept"].shape[1]
        for name in ("ids", "kept", "logits"):
            columns[name] = columns[name][:, :width]
        return cls(
            **columns,
            gold_ids=gold_ids,
            temperatures=tuple(temperatures),
            vocabulary_size=vocabulary_size,
            sample_index=sample_index,
            num_samples=num_samples,
        )

    @classmethod
    def from_log_probabilities(
        cls,
        ids: Tensor,
        log_probabilities: Tensor,
        gold_ids: Tensor,
        gold_log_probability: Tensor,
        *,
        top_p: float | None = None,
        vocabulary_size: int,
    ) -> "TeacherTargets":
        """The targets at temperature 1 of one sample, of the K most likely ids `[N, K]` and of the labels `[N]`.

        What `from_logits` keeps at the same K; the tail is what the K leave of 1, without a mean energy.
        """
        columns = truncate_log_probabilities(
            ids, log_probabilities, gold_ids, gold_log_probability, top_p=top_p, vocabulary_size=vocabulary_size
        )
        return cls(
            **columns,
            gold_ids=gold_ids,
            temperatures=(1.0,),
            vocabulary_size=vocabulary_size,
            sample_index=torch.zeros_like(gold_ids),
            num_samples=1,
        )

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.ids.shape[0]

    def tail_lse_at(self, temperature: Temperature) -> Tensor:
        """The tail's logsumexp at a temperature, `[N]`, interpolated between the temperatures of the grid."""
        return interpolate_tail(self.temperatures, self.tail_lse, self._tail_energies(), temperature)[0]

    def tail_energy_at(self, temperature: Temperature) -> Tensor:
        """The tail's mean energy at a temperature, `[N]`, the slope of the same interpolation."""
        return interpolate_tail(self.temperatures, self.tail_lse, self._tail_energies(), temperature)[1]

    def _tail_energies(self) -> Tensor:
        """`tail_energy`, or that of a tail that is one outcome."""
        if self.tail_energy is not None:
            return self.tail_energy
        grid = torch.tensor(self.temperatures, dtype=self.tail_lse.dtype, device=self.tail_lse.device)
        return torch.where(torch.isneginf(self.tail_lse), 0.0, -grid * self.tail_lse)

    def log_partition(self, temperature: Temperature = 1.0) -> Tensor:
        """Log of the sum over the vocabulary of exp(z / temperature), `[N]`: kept part exact, tail from the grid."""
        return torch.logaddexp(torch.logsumexp(self._scaled_logits(temperature), dim=1), self.tail_lse_at(temperature))

    def log_probabilities(self, temperature: Temperature = 1.0) -> Tensor:
        """Log-probabilities of the kept entries, `[N, K]`, -inf at padding."""
        return self._scaled_logits(temperature) - self.log_partition(temperature).unsqueeze(1)

    def tail_log_probability(self, temperature: Temperature = 1.0) -> Tensor:
        """Log of the probability that the token is none of the kept, `[N]`; -inf where everything is kept."""
        return self.tail_lse_at(temperature) - self.log_partition(temperature)

    def gold_log_probability(self, temperature: Temperature = 1.0) -> Tensor:
        """Log-probability of the label, `[N]`."""
        return self.gold_logit / temperature - self.log_partition(temperature)

    def entropy(self, temperature: Temperature = 1.0) -> Tensor:
        """Entropy over the whole vocabulary in nats, `[N]`: log-partition plus the mean energy / temperature."""
        kept_energy = -self.logits.masked_fill(~self.kept, 0.0)
        kept_part = (self.log_probabilities(temperature).exp() * kept_energy).sum(dim=1)
        tail_part = self.tail_log_probability(temperature).exp() * self.tail_energy_at(temperature)
        return self.log_partition(temperature) + (kept_part + tail_part) / temperature

    def largest_probability(self, temperature: Temperature = 1.0) -> Tensor:
        """The teacher's largest probability, `[N]`; its logit is 0 by definition, so it need not be kept."""
        return torch.exp(-self.log_partition(temperature))

    def margin(self, temperature: Temperature = 1.0) -> Tensor:
        """Largest probability minus the second largest, `[N]`, between 0 and 1.

        The second largest is the second kept entry: exact where three or more are kept, because the gold entry
        displaces only the last. Where one is kept, it is taken to be the whole tail, which errs to a small margin.
        """
        largest = self.largest_probability(temperature)
        tail = torch.minimum(self.tail_log_probability(temperature).exp(), largest)
        if self.ids.shape[1] < 2:
            return largest - tail
        second = self.log_probabilities(temperature)[:, 1].exp()
        return largest - torch.where(self.kept[:, 1], second, tail)

    def _scaled_logits(self, temperature: Temperature) -> Tensor:
        """Kept logits over the temperature, `[N, K]`, -inf at padding, finite in the gradient of the temperature."""
        scale = temperature.unsqueeze(1) if isinstance(temperature, Tensor) else temperature
        return (self.logits.masked_fill(~self.kept, 0.0) / scale).masked_fill(~self.kept, -torch.inf)

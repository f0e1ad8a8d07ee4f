"""The mixture of teachers, sum of w_t p_t, as the targets of one teacher.

The mixture is taken at temperature 1, of each teacher's whole distribution: what it keeps as it is, and its tail spread
evenly over the ids that it does not keep, the flattest of all distributions that agree with what is cached. So an id
that another teacher keeps gets its share, nothing is counted twice, and everything sums to one. Where everything is
kept the mixture is exact. Shapes: N tokens, T teachers, V ids, U the ids that any of them keeps at a token.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from betakd_stages.errors import MismatchError
from betakd_stages.targets import TeacherTargets


def mix_targets(teachers: Sequence[TeacherTargets], weights: Tensor) -> TeacherTargets:
    """The targets of the mixture of T teachers at the same N tokens, with weights `[N, T]` whose rows sum to 1.

    At the temperatures that all of them hold. A teacher of weight 0 adds neither mass nor ids. There are no moments of
    logits, which a mixture does not have. At temperatures other than 1 the tail is an estimate: the teachers' tails
    count as one shape, each in the measure in which its mass is in the mixture's; one teacher's own comes out exactly.
    Raises MismatchError where those do not reach 1.
    """
    first = teachers[0]
    temperatures = shared_temperatures({str(place): each.temperatures for place, each in enumerate(teachers, start=1)})
    weights = weights.to(first.logits.dtype)
    log_weights = weights.log()
    ids, kept = _union(teachers, weights > 0)
    num_ids = kept.sum(dim=1)
    places = [_places(ids, kept, teacher) for teacher in teachers]
    shares = [_tail_share(teacher) for teacher in teachers]
    log_probabilities = torch.stack(
        [_spread(teacher, share, at, kept) for teacher, share, at in zip(teachers, shares, places, strict=True)]
    )
    of_ids = torch.logsumexp(log_weights.T.unsqueeze(2) + log_probabilities, dim=0).masked_fill(~kept, -torch.inf)
    of_ids, order = of_ids.sort(dim=1, descending=True, stable=True)
    # A teacher that keeps the label alone (K = 1) may keep its likeliest id to itself: it is in the tail then.
    unkept_largest = [
        (log_weights[:, number] - teacher.log_partition()).masked_fill(teacher.logits[:, 0] == 0, -torch.inf)
        for number, teacher in enumerate(teachers)
    ]
    largest = torch.stack([of_ids[:, 0], *unkept_largest]).amax(dim=0)
    gold = [teacher.gold_log_probability() for teacher in teachers]
    tail = _MixedTail.of(teachers, log_weights, shares, num_ids)
    columns = [tail.at(temperature, largest) for temperature in temperatures]
    has_energies = all(teacher.tail_energy is not None for teacher in teachers)
    return dataclasses.replace(
        first,
        ids=ids.masked_fill(~kept, 0).gather(1, order),
        kept=kept.gather(1, order),
        logits=of_ids - largest.unsqueeze(1),
        gold_logit=torch.logsumexp(log_weights + torch.stack(gold, dim=1), dim=1) - largest,
        temperatures=temperatures,
        tail_lse=torch.stack([lse for lse, _ in columns], dim=1),
        tail_energy=torch.stack([energy for _, energy in columns], dim=1) if has_energies else None,
        logit_max=None,
        logit_mean=None,
        logit_std=None,
        trust=None,
    )


def shared_temperatures(grids: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """The temperatures that every grid by its cache's name holds. Raises MismatchError where they do not reach 1."""
    first = next(iter(grids.values()))
    shared = tuple(value for value in first if all(value in grid for grid in grids.values()))
    if not shared or not min(shared) <= 1 <= max(shared):
        held = "; ".join(f"{name}: {', '.join(f'{value:g}' for value in grid)}" for name, grid in grids.items())
        raise MismatchError(
            f"a mixture is taken at temperature 1, which the temperatures that all caches hold do not reach ({held}): "
            "cache the teachers with the same --temperatures, 1 among them"
        )
    return shared


def _union(teachers: Sequence[TeacherTargets], counts: Tensor) -> tuple[Tensor, Tensor]:
    """The ids `[N, U]` that any teacher keeps whose `counts` `[N, T]` is true, ascending, and where there is one."""
    vocabulary_size = teachers[0].vocabulary_size
    listed = [
        teacher.ids.masked_fill(~(teacher.kept & counts[:, number : number + 1]), vocabulary_size)
        for number, teacher in enumerate(teachers)
    ]
    ids, _ = torch.cat(listed, dim=1).sort(dim=1)
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids, _ = ids.masked_fill(repeated, vocabulary_size).sort(dim=1)
    kept = ids < vocabulary_size
    width = int(kept.sum(dim=1).max()) if len(ids) else 1
    return ids[:, :width].contiguous(), kept[:, :width]


def _places(ids: Tensor, kept: Tensor, teacher: TeacherTargets) -> Tensor:
    """Where in the union `[N, U]` each of the teacher's entries `[N, K]` is; U, one behind it, where it is not."""
    at = torch.searchsorted(ids.masked_fill(~kept, teacher.vocabulary_size), teacher.ids.contiguous())
    inside = at.clamp(max=ids.shape[1] - 1)
    found = teacher.kept & (ids.gather(1, inside) == teacher.ids)
    return torch.where(found, inside, ids.shape[1])


def _tail_share(teacher: TeacherTargets) -> Tensor:
    """Log of what each id in the teacher's tail gets of it, `[N]`; -inf where everything is kept."""
    num_left = (teacher.vocabulary_size - teacher.kept.sum(dim=1)).clamp(min=1)
    return teacher.tail_log_probability() - num_left.to(teacher.logits.dtype).log()


def _spread(teacher: TeacherTargets, share: Tensor, places: Tensor, kept: Tensor) -> Tensor:
    """The teacher's log probabilities of the union's ids, `[N, U]`."""
    spread = share.unsqueeze(1).repeat(1, kept.shape[1] + 1)
    return spread.scatter(1, places, teacher.log_probabilities())[:, :-1]


@dataclasses.dataclass(frozen=True, slots=True)
class _MixedTail:
    """What the teachers leave of the mixture: all ids outside of the union."""

    teachers: Sequence[TeacherTargets]
    log_left: Tensor
    """`[N, T]`, log of the part of a teacher's tail that is outside of the union."""
    log_masses: Tensor
    """`[N, T]`, log of the teacher's mass there."""
    log_mass: Tensor
    """`[N]`, that of the mixture."""
    responsibilities: Tensor
    """`[N, T]`, how much of it is whose."""

    @classmethod
    def of(
        cls, teachers: Sequence[TeacherTargets], log_weights: Tensor, shares: Sequence[Tensor], num_ids: Tensor
    ) -> "_MixedTail":
        """Of teachers whose ids in the tail have `shares` `[N]` of it, log probabilities, and a union of `num_ids`."""
        log_num_outside = (teachers[0].vocabulary_size - num_ids).to(log_weights.dtype).log()
        tails = torch.stack([teacher.tail_log_probability() for teacher in teachers], dim=1)
        log_masses = torch.stack(list(shares), dim=1) + log_num_outside.unsqueeze(1)
        log_mass = torch.logsumexp(log_weights + log_masses, dim=1)
        responsibilities = (log_weights + log_masses - log_mass.unsqueeze(1)).exp().nan_to_num(nan=0.0)
        return cls(teachers, (log_masses - tails).nan_to_num(nan=0.0), log_masses, log_mass, responsibilities)

    def at(self, temperature: float, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Logsumexp and mean energy at a temperature, `[N]` each, of logits relative to `largest` `[N]`, the mixture's
        largest log probability."""
        lse, energy = (self.log_mass - largest) / temperature, largest - self.log_mass
        for number, teacher in enumerate(self.teachers):
            partition = teacher.log_partition()
            log_sum = teacher.tail_lse_at(temperature) - partition / temperature + self.log_left[:, number]
            mass, responsibility = self.log_masses[:, number], self.responsibilities[:, number]
            counts = responsibility > 0
            shape = log_sum - mass / temperature
            mean = teacher.tail_energy_at(temperature) + partition + mass
            lse = lse + torch.where(counts, responsibility * shape, 0.0)
            energy = energy + torch.where(counts, responsibility * mean, 0.0)
        empty = torch.isneginf(self.log_mass)
        return lse.masked_fill(empty, -math.inf), energy.masked_fill(empty, 0.0)

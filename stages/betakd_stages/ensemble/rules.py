"""How much each of several teachers counts, for every sample or at every token.

Shapes: N tokens, B samples, T teachers; weights are 0 or more and sum to 1 over the teachers. A teacher that does not
hold a sample has weight 0 there, and the others carry it; one teacher alone has weight 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from betakd_stages.targets import TeacherTargets


def uniform_weights(held: Tensor) -> Tensor:
    """The same for every teacher that is `held` `[R, T]`, one at least in each row."""
    return held.double() / held.sum(dim=1, keepdim=True)


def entropy_weights(entropy: Tensor, held: Tensor, scale: float = 1.0) -> Tensor:
    """exp(-entropy / scale), normalised, of entropies `[R, T]` in nats: who is sure counts.

    Source: our reading of MT-BKD (arXiv 2605.27967), which weighs teachers by their entropy.
    """
    return (-entropy / scale).masked_fill(~held, -torch.inf).softmax(dim=1)


def confidence_weights(cross_entropy: Tensor, held: Tensor) -> Tensor:
    """(1 - softmax(cross-entropy with the label)) / (T - 1) of cross-entropies `[R, T]`: who gives the label counts.

    Source: CA-MKD (arXiv 2201.00007), equation 4.
    """
    share = cross_entropy.masked_fill(~held, -torch.inf).softmax(dim=1)
    num_others = held.sum(dim=1, keepdim=True) - 1
    return torch.where(num_others > 0, (1.0 - share) / num_others.clamp(min=1), 1.0).masked_fill(~held, 0.0)


def normalised(given: Tensor, held: Tensor) -> Tensor:
    """Weights in proportion to numbers `[R, T]`, 0 or more; alike where all held ones are 0."""
    given = given.masked_fill(~held, 0.0).double()
    total = given.sum(dim=1, keepdim=True)
    return torch.where(total > 0, given / total.clamp(min=torch.finfo(given.dtype).tiny), uniform_weights(held))


FITTED = ("trust", "learned")
"""Rules whose numbers for each sample are fitted to caches and labels before training."""
MEASURED: dict[str, Callable[[TeacherTargets], Tensor]] = {
    "entropy": lambda teacher: teacher.entropy(),
    "confidence": lambda teacher: -teacher.gold_log_probability(),
}
"""What a rule looks at, `[N]` in nats."""


def teacher_weights(
    rule: str,
    teachers: Sequence[TeacherTargets],
    held: Tensor,
    *,
    per_token: bool = False,
    entropy_scale: float = 1.0,
    given: Tensor | None = None,
) -> Tensor:
    """The weights `[N, T]` of teachers at the same tokens, `held` bool `[B, T]`, in the dtype of their logits.

    Measured rules take the mean over the tokens of a sample unless they are taken `per_token`; fitted ones have `given`
    `[B, T]` numbers for each sample: trust, 0 to 1, or weights.
    """
    sample_index = teachers[0].sample_index
    if rule in MEASURED:
        values = torch.stack([MEASURED[rule](teacher) for teacher in teachers], dim=1)
        rows = held[sample_index] if per_token else held
        values = values if per_token else sample_means(values, sample_index, len(held))
        if rule == "entropy":
            weights = entropy_weights(values, rows, entropy_scale)
        else:
            weights = confidence_weights(values, rows)
        weights = weights if per_token else weights[sample_index]
    elif rule == "uniform":
        weights = uniform_weights(held)[sample_index]
    else:
        assert rule in FITTED
        assert given is not None
        weights = normalised(given, held)[sample_index]
    return weights.to(teachers[0].logits.dtype)


def sample_means(values: Tensor, sample_index: Tensor, num_samples: int) -> Tensor:
    """Means `[B, T]` over the tokens of each sample of values `[N, T]`; 0 for a sample without tokens."""
    sums = values.new_zeros(num_samples, values.shape[1]).index_add(0, sample_index, values)
    counts = torch.bincount(sample_index, minlength=num_samples).clamp(min=1)
    return sums / counts.unsqueeze(1).to(values.dtype)

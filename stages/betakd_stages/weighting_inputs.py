"""What a weighting sees of each sample: pooled teacher features, and scalars of the teacher's distribution."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from betakd_stages.errors import ConfigError
from betakd_stages.features import FeatureStatistics
from betakd_stages.targets import TeacherTargets

TRUST = "trust"


def _trust(targets: TeacherTargets) -> Tensor:
    if targets.trust is None:
        raise ConfigError(
            "weighting input 'trust' is not in the batch: give the targets how far the teacher can be believed, as "
            "`betakd-pipe cache trust` fits it"
        )
    return targets.trust[targets.sample_index]


SCALARS: dict[str, Callable[[TeacherTargets], Tensor]] = {
    "teacher_entropy": lambda targets: targets.entropy(),
    "gold_log_probability": lambda targets: targets.gold_log_probability(),
    "gold_probability": lambda targets: targets.gold_log_probability().exp(),
    "margin": lambda targets: targets.margin(),
    TRUST: _trust,
}
"""Per token `[N]`, averaged over the sample; of order one as they are, so not standardised."""


class WeightingInputs:
    """Assembles the inputs `[B, F]`: each feature with a bit that says whether the sample has it, then the scalars.

    A sample without a feature (text has no `vision`) gets the feature's mean, which is 0 once standardised, and bit 0;
    what else is named, the `prompt` feature say, then decides its weight.
    """

    def __init__(self, names: Sequence[str], features: Mapping[str, FeatureStatistics]) -> None:
        """Raises ConfigError for a name that is neither a cached feature nor a scalar."""
        for name in names:
            if name not in features and name not in SCALARS:
                raise ConfigError(
                    f"unknown weighting input {name!r}: choose among {', '.join([*sorted(features), *SCALARS])}"
                )
        self.features = {name: features[name] for name in names if name in features}
        self.scalars = [name for name in names if name in SCALARS]
        bit, num_scalars = torch.zeros(1), len(self.scalars)
        means = [part for held in self.features.values() for part in (held.mean.float(), bit)]
        deviations = [part for held in self.features.values() for part in (held.deviation.float(), bit + 1)]
        self.mean = torch.cat([*means, torch.zeros(num_scalars)])
        self.deviation = torch.cat([*deviations, torch.ones(num_scalars)])

    @property
    def size(self) -> int:
        """F."""
        return self.mean.shape[0]

    @property
    def has_trust(self) -> bool:
        """Whether the batches' targets have to say how far the teacher can be believed."""
        return TRUST in self.scalars

    def __call__(
        self,
        targets: TeacherTargets,
        num_tokens: Tensor,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
    ) -> Tensor:
        """The inputs `[B, F]`, float32, not standardised, of features `[B, size]` (or several places of
        each, which are averaged) and their presence, bool `[B]`."""
        device = num_tokens.device
        columns = [torch.zeros(len(num_tokens), 0, device=device)]
        for name, held in self.features.items():
            if name not in features:
                raise ConfigError(f"weighting input {name!r} is not in the batch: load this feature from the cache")
            mask = present[name].unsqueeze(1)
            pooled = features[name].float().flatten(1, -2).mean(dim=1) if features[name].ndim > 2 else features[name]
            columns += [torch.where(mask, pooled.float(), held.mean.float().to(device)), mask.float()]
        for name in self.scalars:
            values = SCALARS[name](targets).float()
            sums = torch.zeros(len(num_tokens), device=device).index_add(0, targets.sample_index, values)
            columns.append((sums / num_tokens.clamp(min=1)).unsqueeze(1))
        return torch.cat(columns, dim=1)

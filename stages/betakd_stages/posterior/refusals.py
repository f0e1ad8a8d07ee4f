"""Runs that have no posterior, or none that can be sampled here."""

from betakd_stages.choices import pick
from betakd_stages.errors import ConfigError
from betakd_stages.processes import index_and_count
from betakd_stages.settings import DistillSettings
from betakd_stages.weightings import WEIGHTINGS, GradientWeighting


def require_posterior(settings: DistillSettings) -> None:
    """Nothing; raises ConfigError where the posterior is to be sampled and there is none, or not in this way."""
    if not settings.posterior.count:
        return
    asked = f"posterior.count is {settings.posterior.count}, but"
    weighting, num_processes = settings.weighting.name, index_and_count()[1]
    if num_processes > 1:
        raise ConfigError(f"{asked} one process can sample it and {num_processes} were started: start one")
    if settings.training.precision == "fp16":
        raise ConfigError(f"{asked} fp16 scales the gradients: use training.precision bf16 or fp32")
    if settings.objective.reduction != "sample":
        raise ConfigError(
            f"{asked} objective.reduction is {settings.objective.reduction}: the posterior is that of a sum over "
            "samples, use sample"
        )
    if issubclass(pick("weighting", WEIGHTINGS, weighting), GradientWeighting):
        raise ConfigError(
            f"{asked} the gradients that weighting {weighting} combines are those of no objective, so that there is "
            "no posterior: use another weighting"
        )

"""Which method is compared with which, and whether they differ: a paired bootstrap over questions and seeds.

S seeds that both methods have, Q questions of each, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from betakd_pipe.report.records import ReportError, Run, Runs

MANUAL = "manual"
SEED = 0
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method's accuracy minus its reference's, in points."""

    reference: str
    num_seeds: int
    difference: float
    low: float
    """The 95 % interval begins here,"""
    high: float
    """and ends here."""
    p_value: float
    """Two-sided, of this comparison alone."""
    adjusted_p_value: float
    """Holm's, for all comparisons of the table together."""

    @property
    def is_significant(self) -> bool:
        """Whether it stands although so many were compared."""
        return self.adjusted_p_value < SIGNIFICANT

    @property
    def p_is_bound(self) -> bool:
        """Whether no resample contradicted the difference, so that p is at most this, and more resamples would lower
        it."""
        from betakd_stages.evaluation.bootstrap import NUM_RESAMPLES  # imports SciPy

        return self.p_value <= 2 / (NUM_RESAMPLES + 1)


def references(runs: Runs, baseline: str | None = None) -> dict[str, str]:
    """What each method is compared with; a method that is its own reference is left out.

    That is `baseline` where one is named, else the method with manual weights on the same energies and features, else
    the first method. Raises ReportError for a baseline that is no method.
    """
    if baseline is not None and baseline not in runs:
        raise ReportError(f"--baseline {baseline}: no such method, expected one of {', '.join(runs)}")
    manual: dict[tuple[str, ...], str] = {}
    for method, of in runs.items():
        if of[0].weighting == MANUAL:
            manual.setdefault(of[0].channels, method)
    first = next(iter(runs))
    chosen = {method: baseline or manual.get(of[0].channels, first) for method, of in runs.items()}
    return {method: reference for method, reference in chosen.items() if reference != method}


def comparisons(runs: Runs, baseline: str | None = None) -> dict[str, Comparison]:
    """Each method against its reference, on the seeds that both have; those without a common seed are left out."""
    found = {
        method: compared
        for method, reference in references(runs, baseline).items()
        if (compared := compare(runs[method], runs[reference])) is not None
    }
    adjusted = holm([each.p_value for each in found.values()])
    return {
        method: replace(each, adjusted_p_value=p) for (method, each), p in zip(found.items(), adjusted, strict=True)
    }


def compare(own: Sequence[Run], other: Sequence[Run]) -> Comparison | None:
    """One method against another; None where no seed has both, asked the same questions."""
    pairs = [(one, two) for one in own for two in other if one.row.seed == two.row.seed]
    differences = [_differences(one, two) for one, two in pairs]
    known = [each for each in differences if each is not None]
    if not known or len({len(each) for each in known}) > 1:
        return None
    low, high, p_value = paired_bootstrap_over_seeds(np.stack(known))
    return Comparison(
        reference=other[0].row.method,
        num_seeds=len(known),
        difference=100 * float(np.mean(known)),
        low=100 * low,
        high=100 * high,
        p_value=p_value,
        adjusted_p_value=p_value,
    )


def paired_bootstrap_over_seeds(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """The 95 % interval, low and high, of the mean of differences `[S, Q]`, and the two-sided p-value of no difference.

    Each resample draws S seeds and Q questions, those for all seeds alike; with one seed it says nothing about others.
    Source: Owen 2007, "The pigeonhole bootstrap"; interval and p-value as in Efron and Tibshirani 1993, chapter 13.
    """
    from betakd_stages.evaluation.bootstrap import NUM_RESAMPLES, resampled_sums  # imports SciPy

    num_seeds, num_questions = differences.shape
    sums = resampled_sums(differences.T, np.zeros(num_questions, dtype=np.int64), SEED, NUM_RESAMPLES)  # [R, S]
    drawn = np.random.default_rng([SEED, 1]).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES)
    means = (sums * drawn).sum(axis=1) / (num_seeds * num_questions)
    low, high = np.quantile(means, [0.025, 0.975])
    smaller_side = min((means <= 0).sum(), (means >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (int(smaller_side) + 1) / (NUM_RESAMPLES + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted so that all those below a bound hold together with that probability of any error.

    Source: Holm 1979.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors), 1.0)
    found = np.empty(len(p_values))
    found[order] = adjusted
    return [float(value) for value in found]


def best_method(runs: Runs) -> str:
    """The method with the largest mean accuracy."""
    return ranking(runs)[0]


def ranking(runs: Runs) -> list[str]:
    """The methods by mean accuracy, the largest first; of equals, that which comes first."""
    means = mean_accuracies(runs)
    return sorted(means, key=lambda method: -means[method])


def mean_accuracies(runs: Runs) -> Mapping[str, float]:
    """Accuracy in percent, mean over seeds, by method."""
    return {method: float(np.mean([run.row.accuracy for run in of])) for method, of in runs.items()}


def _differences(own: Run, other: Run) -> NDArray[np.float64] | None:
    """By question, 1 where only the first is right, -1 where only the other is; None for different questions."""
    asked = [[answer["sample_id"] for answer in run.predictions] for run in (own, other)]
    if asked[0] != asked[1]:
        return None
    right = [np.array([answer["correct"] for answer in run.predictions], dtype=np.float64) for run in (own, other)]
    return np.asarray(right[0] - right[1])

"""What the numbers say, in plain sentences: which method won, by how much, is that significant, what did beta do."""

from collections.abc import Mapping, Sequence

import numpy as np

from betakd_pipe.report.comparisons import Comparison, compare, mean_accuracies, ranking
from betakd_pipe.report.method_table import interval_text, p_text
from betakd_pipe.report.records import ReportScenario, Runs
from betakd_pipe.report.tables import signed
from betakd_pipe.report.weights import WeightStory


def headline(
    scenario: ReportScenario, runs: Runs, compared: Mapping[str, Comparison], stories: Sequence[WeightStory]
) -> list[str]:
    """The sentences of a scenario, the most important first."""
    sentences = [*_unfinished(scenario, runs), _winner(runs, compared), *_second(runs), *_tally(compared)]
    return [*sentences, *_weights(runs, stories), *_collapses(stories)]


def _unfinished(scenario: ReportScenario, runs: Runs) -> list[str]:
    num_done = sum(len(of) for of in runs.values())
    if scenario.num_planned is None or num_done >= scenario.num_planned:
        return []
    return [f"Unfinished: {num_done} of {scenario.num_planned} runs are done, and this is what they say so far."]


def _winner(runs: Runs, compared: Mapping[str, Comparison]) -> str:
    best = ranking(runs)[0]
    accuracies = [run.row.accuracy for run in runs[best]]
    spread = f" ± {np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else ""
    seeds = f"mean of {len(accuracies)} seeds" if len(accuracies) > 1 else "one seed"
    text = f"{best} has the highest accuracy: {np.mean(accuracies):.1f}{spread} % ({seeds})"
    comparison = compared.get(best)
    if comparison is None:
        num_compared = sum(each.reference == best for each in compared.values())
        others = "method is" if num_compared == 1 else "methods are"
        return f"{text}; {num_compared} other {others} compared with it." if num_compared else f"{text}."
    return f"{text}, {_points(comparison)} than {comparison.reference}, which is {_verdict(comparison)}."


def _second(runs: Runs) -> list[str]:
    """How far the best is ahead of the next best, which is what choosing it is worth."""
    first, *others = ranking(runs)
    if not others:
        return []
    comparison = compare(runs[first], runs[others[0]])
    gap = mean_accuracies(runs)[first] - mean_accuracies(runs)[others[0]]
    text = f"The next best is {others[0]}, {gap:.1f} points behind"
    if comparison is None:
        return [f"{text}."]
    known = "a gap that is established" if comparison.low > 0 else "a gap that may be chance"
    return [f"{text} (95 % interval {interval_text(comparison)}): {known}."]


def _tally(compared: Mapping[str, Comparison]) -> list[str]:
    """How many methods differ from their reference, after the correction for how many were tried."""
    if len(compared) < 2:
        return []
    better = [method for method, each in compared.items() if each.is_significant and each.difference > 0]
    worse = [method for method, each in compared.items() if each.is_significant and each.difference < 0]
    rest = len(compared) - len(better) - len(worse)
    return [
        f"Of {len(compared)} methods compared with their reference, {len(better)} {_are(better)} significantly better"
        f"{_named(better)}, {len(worse)} significantly worse{_named(worse)}, and {rest} cannot be told apart from it."
    ]


def _weights(runs: Runs, stories: Sequence[WeightStory]) -> list[str]:
    """What beta did in the best method whose weights were not the same all the time."""
    learned = [story for story in stories if not story.is_constant]
    if not learned:
        return []
    method = next(name for name in ranking(runs) if any(story.method == name for story in learned))
    own = [story for story in learned if story.method == method]
    role = "the winner" if method == ranking(runs)[0] else "the best of those whose weights vary"
    parts = "; ".join(_told(story) for story in own)
    return [f"In {method}, {role}, β {parts}."]


def _told(story: WeightStory) -> str:
    direction = "rose" if story.last > story.first else "fell"
    text = f"of {story.channel} {direction} from {story.first:.2f} in the first steps to {story.last:.2f}"
    if not story.is_per_sample:
        return f"{text}, the same for every sample"
    text += f", between {story.low:.2f} and {story.high:.2f} for four in five samples"
    return text + _follows_teacher(story.with_teacher_entropy)


def _follows_teacher(correlation: float | None) -> str:
    if correlation is None or abs(correlation) < 0.1:
        return ", whether or not the teacher is sure"
    side = "less" if correlation > 0 else "more"
    figure = signed(correlation, 2)
    return f", larger where the teacher is {side} sure (correlation of log β with its entropy {figure})"


def _collapses(stories: Sequence[WeightStory]) -> list[str]:
    collapsed = [f"{story.method} ({story.channel})" for story in stories if story.has_collapsed]
    num_known = sum(story.with_teacher_entropy is not None for story in stories)
    if not num_known:
        return []
    if not collapsed:
        return [
            f"No β collapsed: of {num_known} that differ between samples none grew most where the teacher knows least."
        ]
    named = ", ".join(collapsed[:6]) + (f" and {len(collapsed) - 6} more" if len(collapsed) > 6 else "")
    return [f"β grew most where the teacher knows least, the sign of a collapse, in {named}."]


def _points(comparison: Comparison) -> str:
    amount = abs(comparison.difference)
    return (
        f"{amount:.1f} points {'more' if comparison.difference >= 0 else 'less'} "
        f"(95 % interval {interval_text(comparison)})"
    )


def _verdict(comparison: Comparison) -> str:
    text = "significant" if comparison.is_significant else "not significant"
    return f"{text} (p {_equals(comparison)}, adjusted for all comparisons)"


def _equals(comparison: Comparison) -> str:
    text = p_text(comparison)
    return text if text.startswith(("<", "≤")) else f"= {text}"


def _are(methods: Sequence[str]) -> str:
    return "is" if len(methods) == 1 else "are"


def _named(methods: Sequence[str]) -> str:
    """The methods in brackets, where they are few enough to be named."""
    return f" ({', '.join(methods)})" if 0 < len(methods) <= 4 else ""

"""Which methods share a figure: those with the same energies and features, the best of all first, a handful at a time.

A plot of dozens of methods shows nothing, and energies of different kinds do not share an axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from betakd_pipe.report.comparisons import mean_accuracies, ranking
from betakd_pipe.report.records import Runs
from betakd_pipe.report.styles import Style, method_styles

MAX_METHODS = 8
"""In one figure."""


@dataclass(frozen=True, slots=True)
class Group:
    """Methods that are drawn together, and how each looks; `name` can be part of a file's name."""

    title: str
    name: str
    styles: Mapping[str, Style]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the order of the ablation."""
        return tuple(self.styles)

    def of(self, runs: Runs) -> Runs:
        """The group's part of the runs."""
        return {method: runs[method] for method in self.methods}


def method_groups(runs: Runs) -> list[Group]:
    """The groups, that of the best method first, the others by their best method.

    The best method without any energy stands beside the others in every group: it is what labels alone give.
    """
    families: dict[tuple[str, ...], list[str]] = {}
    for method, of in runs.items():
        families.setdefault(of[0].channels, []).append(method)
    plain = families.pop((), [])
    accuracies = mean_accuracies(runs)
    beside = sorted(plain, key=lambda method: -accuracies[method])[:1] if families else []
    best_first = ranking(runs)
    ordered = sorted(families.items(), key=lambda item: min(best_first.index(method) for method in item[1]))
    groups = [group for channels, methods in ordered for group in _parts(" + ".join(channels), methods, beside, runs)]
    # What is not beside the others is shown on its own: all of it, where nothing was distilled.
    alone = plain if not families else plain if len(plain) > 1 else []
    return [*groups, *_parts("labels alone", alone, [], runs)]


def _parts(title: str, methods: Sequence[str], beside: Sequence[str], runs: Runs) -> list[Group]:
    """The methods in parts of like size, none larger than a figure holds; parts stay in the order of the ablation."""
    if not methods:
        return []
    num_parts = -(-len(methods) // (MAX_METHODS - len(beside)))
    size = -(-len(methods) // num_parts)
    order = list(runs)
    groups = []
    for number in range(num_parts):
        members = sorted([*beside, *methods[number * size : (number + 1) * size]], key=order.index)
        suffix = f" ({number + 1} of {num_parts})" if num_parts > 1 else ""
        name = title.replace(" + ", "+").replace(":", "-").replace(" ", "-")
        groups.append(Group(title + suffix, f"{name}-{number + 1}" if num_parts > 1 else name, method_styles(members)))
    return groups

"""The figures of a scenario, group by group: drawn, and ready to stand in the page and beside it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from betakd_pipe.report.calibration import calibration_curves
from betakd_pipe.report.calibration_figures import (
    RELIABILITY_NOTE,
    SELECTIVE_NOTE,
    draw_reliability,
    draw_selective,
)
from betakd_pipe.report.categories import category_bars
from betakd_pipe.report.curves import Panel, training_panels
from betakd_pipe.report.distances import distributions
from betakd_pipe.report.drawing import Drawn
from betakd_pipe.report.figures import draw_category_bars, draw_distributions, draw_panel, draw_scatters
from betakd_pipe.report.groups import Group
from betakd_pipe.report.records import ReportScenario, Runs, seeds_of, teacher_scores
from betakd_pipe.report.scatter import NOTE as SCATTER_NOTE
from betakd_pipe.report.scatter import sample_kinds, scatters
from betakd_pipe.report.styles import Style

DISTRIBUTIONS_NOTE = (
    "Log-probabilities of the entries that the cache kept of the probed samples: the teacher’s as an area, the "
    "students’ as lines, all seeds together."
)
WEIGHT_PANELS = ("beta-", "entropy_correlation-")
"""How the names of the panels begin that are about the weights; the others are about the losses."""


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """An inline SVG with its title and a note on how to read it."""

    title: str
    note: str
    svg: Markup
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """The figures of one group of methods, and the legend that they share."""

    title: str
    styles: Mapping[str, Style]
    figures: Sequence[ShownFigure]


class Artist:
    """Draws the figures of one scenario; `drawn` has each under a name of its own."""

    def __init__(self, scenario: ReportScenario, runs: Runs, groups: Sequence[Group], anchor: str) -> None:
        self._teacher = list(teacher_scores(scenario).values())
        self._has_seeds = len(seeds_of(scenario)) > 1
        self._runs = runs
        self._groups = groups
        self._anchor = anchor
        self._kinds = sample_kinds(runs)
        self.drawn: dict[str, Drawn] = {}

    def bars(self) -> list[ShownGroup]:
        """Accuracy by question type."""
        return self._for_each(self._bars)

    def calibration(self) -> list[ShownGroup]:
        """Reliability, and accuracy of the most confident answers."""
        return self._for_each(self._calibration)

    def weights(self) -> list[ShownGroup]:
        """The weights over training, and against the entropies."""
        return self._for_each(lambda group: [*self._panels(group, of_weights=True), *self._scatters(group)])

    def distances(self) -> list[ShownGroup]:
        """The distributions of log-probabilities."""
        return self._for_each(self._distributions)

    def curves(self) -> list[ShownGroup]:
        """Cross-entropy and energies over training."""
        return self._for_each(lambda group: self._panels(group, of_weights=False))

    def _for_each(self, draw: Callable[[Group], list[ShownFigure]]) -> list[ShownGroup]:
        """What is drawn of each group, those left out of which there is nothing."""
        drawn = [(group, draw(group)) for group in self._groups]
        return [ShownGroup(group.title, group.styles, figures) for group, figures in drawn if figures]

    def _bars(self, group: Group) -> list[ShownFigure]:
        bars = category_bars(group.of(self._runs), self._teacher)
        if bars is None:
            return []
        notes = ["Mean over seeds; whiskers are ± one standard deviation."] if self._has_seeds else []
        if bars.teacher is not None:
            notes.append("The line across each group is the teacher.")
        name = self._name(group, "accuracy-by-type")
        return [self._shown(draw_category_bars(bars, name, group.styles), name, "", " ".join(notes), is_wide=True)]

    def _calibration(self, group: Group) -> list[ShownFigure]:
        curves = calibration_curves(group.of(self._runs))
        if curves is None:
            return []
        reliability, selective = self._name(group, "reliability"), self._name(group, "selective-accuracy")
        drawn = (draw_reliability(curves, reliability, group.styles), draw_selective(curves, selective, group.styles))
        return [
            self._shown(drawn[0], reliability, "Reliability", RELIABILITY_NOTE),
            self._shown(drawn[1], selective, "Accuracy of the most confident answers", SELECTIVE_NOTE),
        ]

    def _panels(self, group: Group, *, of_weights: bool) -> list[ShownFigure]:
        metrics = {method: [run.metrics for run in of] for method, of in group.of(self._runs).items()}
        panels = [each for each in training_panels(metrics) if each.name.startswith(WEIGHT_PANELS) == of_weights]
        return [self._panel(group, panel) for panel in panels]

    def _panel(self, group: Group, panel: Panel) -> ShownFigure:
        name = self._name(group, panel.name)
        return self._shown(draw_panel(panel, name, group.styles), name, panel.title, panel.note)

    def _scatters(self, group: Group) -> list[ShownFigure]:
        found = scatters(group.of(self._runs), self._kinds)
        if not found:
            return []
        name = self._name(group, "weight-by-entropy")
        title = "Weight of each probed sample against entropy"
        return [self._shown(draw_scatters(found, name), name, title, SCATTER_NOTE, is_wide=True)]

    def _distributions(self, group: Group) -> list[ShownFigure]:
        found = distributions(group.of(self._runs))
        if not found:
            return []
        name = self._name(group, "log-probabilities")
        return [self._shown(draw_distributions(found, name, group.styles), name, "", DISTRIBUTIONS_NOTE, is_wide=True)]

    def _name(self, group: Group, kind: str) -> str:
        """The figure's name in the page and of its files; the group's is left out where there is only one."""
        parts = [self._anchor, *([group.name] if len(self._groups) > 1 else []), kind]
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(parts)).replace("+", "-")

    def _shown(self, drawn: Drawn, name: str, title: str, note: str, *, is_wide: bool = False) -> ShownFigure:
        self.drawn[name] = drawn
        return ShownFigure(title, note, Markup(drawn.inline_svg), is_wide)

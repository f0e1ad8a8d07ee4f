"""What each way to set weights gave over all losses: its mean gain, and how often it was better or worse."""

from collections.abc import Mapping, Sequence

import numpy as np

from betakd_pipe.report.comparisons import Comparison
from betakd_pipe.report.records import ReportScenario, Runs
from betakd_pipe.report.tables import MISSING, Cell, Line, Table, signed

NOTE = (
    "A loss is a set of energies and features. The gain is the mean, over losses, of the gains in the table of methods "
    "in points; better and worse count losses by the sign of the gain, and in brackets those with p < 0.05."
)
PAPER_NOTE = "The paper’s gains are of its own models and data, of the same losses."


def weighting_table(scenario: ReportScenario, runs: Runs, compared: Mapping[str, Comparison]) -> Table | None:
    """One line per way to set weights that was compared on several losses, within each; None where there is none."""
    within = {
        method: each
        for method, each in compared.items()
        if runs[method][0].channels == runs[each.reference][0].channels
    }
    members: dict[str, list[str]] = {}
    for method in within:
        members.setdefault(_weighting(scenario, runs, method), []).append(method)
    several = {name: methods for name, methods in members.items() if len(methods) > 1}
    if not several:
        return None
    references = {_weighting(scenario, runs, within[method].reference) for of in several.values() for method in of}
    over = references.pop() if len(references) == 1 else "the reference"
    has_paper = any(method in scenario.paper_gains for of in several.values() for method in of)
    headings = ("weights", "losses", f"mean gain over {over}", "better", "worse")
    lines = tuple(Line(name, _cells(scenario, methods, within, has_paper)) for name, methods in several.items())
    note = f"{NOTE} {PAPER_NOTE}" if has_paper else NOTE
    return Table("weightings", (*headings, *(["mean gain, paper"] if has_paper else [])), lines, note)


def _weighting(scenario: ReportScenario, runs: Runs, method: str) -> str:
    """What the ablation calls the method's way to set weights, or else the name of its weighting."""
    return scenario.weightings.get(method, runs[method][0].weighting)


def _cells(
    scenario: ReportScenario, methods: Sequence[str], compared: Mapping[str, Comparison], has_paper: bool
) -> tuple[Cell, ...]:
    own = [compared[method] for method in methods]
    better, worse = ([each for each in own if sign * each.difference > 0] for sign in (1, -1))
    papers = [scenario.paper_gains[method] for method in methods if method in scenario.paper_gains]
    cells = (
        Cell(str(len(own)), len(own)),
        _mean([each.difference for each in own]),
        *(Cell(f"{len(side)} ({sum(each.is_significant for each in side)})", len(side)) for side in (better, worse)),
    )
    return (*cells, _mean(papers)) if has_paper else cells


def _mean(gains: Sequence[float]) -> Cell:
    if not gains:
        return Cell(MISSING)
    mean = float(np.mean(gains))
    return Cell(signed(mean, 1), mean)

"""The table of an ablation on the terminal: mean ± standard deviation over the seeds."""

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from betakd_pipe.ablate_rows import ResultRow


def print_table(rows: Sequence[ResultRow], console: Console | None = None) -> None:
    """Print one line per method, in the order of the rows."""
    table = Table("method", "seeds", "accuracy %", "validation %", "agreement %", "ece", "seconds")
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [row for row in rows if row.method == method]
        table.add_row(
            method,
            str(len(of_method)),
            mean_and_deviation([row.accuracy for row in of_method]),
            mean_and_deviation([row.validation_accuracy for row in of_method]),
            mean_and_deviation([row.agreement for row in of_method]),
            mean_and_deviation([row.expected_calibration_error for row in of_method], digits=3),
            mean_and_deviation([row.seconds for row in of_method]),
        )
    (console or Console()).print(table)


def mean_and_deviation(figures: Sequence[float | None], digits: int = 1) -> str:
    """`mean ± sample standard deviation`, the mean alone for one figure, a dash where a figure is missing."""
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures) or not known:
        return "-"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"

"""The table of an ablation on the terminal: mean ± standard deviation over the seeds."""

import statistics
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from betakd_pipe.ablation.rows import ResultRow

MISSING = "-"
COLUMNS: list[tuple[str, Callable[[ResultRow], float | None], int]] = [
    ("accuracy %", lambda row: row.accuracy, 1),
    ("validation %", lambda row: row.validation_accuracy, 1),
    ("agreement %", lambda row: row.agreement, 1),
    ("ece", lambda row: row.expected_calibration_error, 3),
]


def print_table(rows: Sequence[ResultRow], console: Console | None = None) -> None:
    """Print one line per method, in the order of the rows; a column that no method fills is left out.

    How many seeds there are is said once below the table, or per method where methods differ.
    """
    methods = dict.fromkeys(row.method for row in rows)
    by_method = {method: [row for row in rows if row.method == method] for method in methods}
    num_seeds = [len(of_method) for of_method in by_method.values()]
    # Narrow, so that the table of the demo fits 80 characters without folding a name.
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("method", overflow="fold")
    columns: list[list[str]] = []
    if len(set(num_seeds)) == 1:
        table.caption = f"  mean ± standard deviation over {num_seeds[0]} seeds" if num_seeds[0] > 1 else None
    else:
        table.add_column("seeds", justify="right")
        columns.append([str(number) for number in num_seeds])
    for title, figure, digits in COLUMNS:
        cells = [mean_and_deviation([figure(row) for row in of_method], digits) for of_method in by_method.values()]
        if any(cell != MISSING for cell in cells):
            table.add_column(title, no_wrap=True)
            columns.append(cells)
    for cells_of_method in zip(methods, *columns, strict=True):
        table.add_row(*cells_of_method)
    (console or Console()).print(table)


def mean_and_deviation(figures: Sequence[float | None], digits: int = 1) -> str:
    """`mean ± sample standard deviation`, the mean alone for one figure, a dash where a figure is missing."""
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures) or not known:
        return MISSING
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"

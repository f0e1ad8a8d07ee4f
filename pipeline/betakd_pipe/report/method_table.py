"""The table of methods: accuracy over seeds, gain over the reference and whether it is significant, and the rest."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.report.comparisons import Comparison
from betakd_pipe.report.records import TEACHER, ReportScenario, Runs, seeds_of, teacher_scores
from betakd_pipe.report.tables import MISSING, Better, Cell, Dot, Line, Strip, Table, mark_best, signed, summary_cell

LABELS_ALONE = ("labels alone",)
STRIP_STEP = 5
"""The strip's ends are multiples of this many percent."""
ACCURACY, VALIDATION, AGREEMENT, ECE = "accuracy %", "validation %", "agreement %", "ECE"


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a run; `better` says which mean is marked as the best."""

    title: str
    digits: int
    better: Better
    value: Callable[[ResultRow], float | None]


COLUMNS = (
    Column(ACCURACY, 1, "higher", lambda row: row.accuracy),
    Column(VALIDATION, 1, "higher", lambda row: row.validation_accuracy),
    Column(AGREEMENT, 1, "higher", lambda row: row.agreement),
    Column(ECE, 3, "lower", lambda row: row.expected_calibration_error),
)
GAIN_HEADINGS = ("gain", "95 % interval", "p", "against")


def method_table(scenario: ReportScenario, runs: Runs, compared: Mapping[str, Comparison]) -> Table:
    """Mean ± sample standard deviation over seeds, one line per method, the teacher's first where it was evaluated.

    Methods on the same energies and features stand together, and among these those of one kind of weights.
    """
    rows = {method: [run.row for run in runs[method]] for method in _together(runs)}
    columns = [column for column in COLUMNS if any(column.value(row) is not None for of in rows.values() for row in of)]
    accuracies = {method: {row.seed: row.accuracy for row in of} for method, of in rows.items()}
    teacher = teacher_scores(scenario)
    taught = {seed: scores["accuracy"] for seed, scores in teacher.items()}
    strip = _strip([accuracy for by_seed in (*accuracies.values(), taught) for accuracy in by_seed.values()])
    students = [
        Line(
            method,
            _cells(columns, of, compared.get(method)),
            _dots(accuracies[method], strip),
            runs[method][0].channels or LABELS_ALONE,
        )
        for method, of in rows.items()
    ]
    gains: list[Better] = [""] * len(GAIN_HEADINGS)
    better: list[Better] = ["higher", *gains, *(column.better for column in columns[1:]), ""]
    lines = mark_best(students, better)
    headings = ("method", ACCURACY, *GAIN_HEADINGS, *(column.title for column in columns[1:]), "final β")
    if teacher:
        errors = [scores["expected_calibration_error"] for scores in teacher.values()]
        known = {ACCURACY: summary_cell(list(taught.values()), 1), ECE: summary_cell(errors, 3)}
        cells = tuple(known.get(heading, Cell(MISSING)) for heading in headings[1:])
        lines = (Line(TEACHER, cells, _dots(taught, strip)), *lines)
    return Table("methods", headings, lines, _note(scenario, [column.title for column in columns]), strip)


def _note(scenario: ReportScenario, titles: Sequence[str]) -> str:
    """What the columns mean that are there."""
    seeds = seeds_of(scenario)
    several = len(seeds) > 1
    told = {
        VALIDATION: "validation is accuracy on the questions set aside for choosing",
        AGREEMENT: "agreement that with the teacher’s answers",
        ECE: "ECE the expected calibration error (smaller is better)",
    }
    sentences = [
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}; each dot is the accuracy of one seed."
        if several
        else f"One seed ({seeds[0]}): nothing here speaks for other seeds.",
        "; ".join(["Accuracy is that on the test questions", *(told[title] for title in titles if title in told)])
        + ".",
        "The gain, in points, is over the method named under “against”, with a 95 % interval from a paired bootstrap "
        f"over questions{' and seeds' if several else ''}, each for its comparison alone. p is two-sided and adjusted "
        "by Holm for all comparisons of this table together, so it may be above 0.05 where an interval leaves out 0; * "
        "marks p < 0.05, and ≤ that no resample contradicted the gain, so that p is at most this.",
    ]
    if 1 < len(seeds) < 5:
        sentences.append(f"Drawn from {len(seeds)} seeds, intervals are too narrow for what other seeds would give.")
    return " ".join(sentences)


def _together(runs: Runs) -> list[str]:
    """The methods by energies and features, then by kind of weights, each in the order of first appearance."""
    channels = list(dict.fromkeys(of[0].channels for of in runs.values()))
    weightings = list(dict.fromkeys(of[0].weighting for of in runs.values()))
    return sorted(
        runs, key=lambda method: (channels.index(runs[method][0].channels), weightings.index(runs[method][0].weighting))
    )


def _cells(columns: Sequence[Column], rows: Sequence[ResultRow], compared: Comparison | None) -> tuple[Cell, ...]:
    first, *others = [summary_cell([column.value(row) for row in rows], column.digits) for column in columns]
    return (first, *_gain_cells(compared), *others, _beta_cell(rows))


def _gain_cells(compared: Comparison | None) -> list[Cell]:
    if compared is None:
        return [Cell(MISSING)] * len(GAIN_HEADINGS)
    star = " *" if compared.is_significant else ""
    return [
        Cell(signed(compared.difference, 1) + star, compared.difference),
        Cell(interval_text(compared), compared.low),
        Cell(p_text(compared), compared.adjusted_p_value),
        Cell(compared.reference),
    ]


def interval_text(compared: Comparison) -> str:
    """The 95 % interval in points."""
    return f"{signed(compared.low, 1)} to {signed(compared.high, 1)}"


def p_text(compared: Comparison) -> str:
    """The adjusted p-value with two digits that say something; a bound where it is one, rounded up."""
    p_value = compared.adjusted_p_value
    if compared.p_is_bound:
        unit = 10.0 ** (math.floor(math.log10(p_value)) - 1)
        return f"≤ {min(1.0, math.ceil(p_value / unit - 1e-9) * unit):.2g}"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def _beta_cell(rows: Sequence[ResultRow]) -> Cell:
    """The final weights, named where a method has several channels; sorted by the first."""
    channels = dict.fromkeys(channel for row in rows for channel in row.betas)
    cells = {channel: summary_cell([row.betas.get(channel) for row in rows], 2) for channel in channels}
    if not cells:
        return Cell(MISSING)
    if len(cells) == 1:
        return next(iter(cells.values()))
    text = ", ".join(f"{channel} {cell.text}" for channel, cell in cells.items())
    return Cell(text, next(iter(cells.values())).key)


def _strip(accuracies: Sequence[float]) -> Strip:
    known = [accuracy for accuracy in accuracies if not math.isnan(accuracy)] or [0.0]
    start = STRIP_STEP * math.floor(min(known) / STRIP_STEP)
    return Strip(float(start), float(max(STRIP_STEP * math.ceil(max(known) / STRIP_STEP), start + STRIP_STEP)))


def _dots(accuracies: Mapping[int, float], strip: Strip) -> tuple[Dot, ...]:
    return tuple(
        Dot(seed, accuracy, round(100 * (accuracy - strip.start) / (strip.end - strip.start), 2))
        for seed, accuracy in accuracies.items()
        if not math.isnan(accuracy)
    )

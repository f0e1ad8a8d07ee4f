"""Tables of a spec's shape, against numbers made by hand."""

import csv
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from betakd_pipe.ablation.paper_tables import reported
from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.shaped import as_markdown, print_shaped, shaped_table, write_shaped
from betakd_pipe.ablation.spec import AblationSpec
from betakd_stages.errors import ConfigError

AXES = {
    "loss": {"fkl": {"objective": {"energies": ["fkl"]}}, "js": {"objective": {"energies": ["js"]}}},
    "weighting": {"manual": {"weighting": {"name": "manual"}}, "task": {"weighting": {"name": "task"}}},
}
TABLE = {
    "title": "Two losses",
    "columns": {"VQA-Acc": "accuracy", "IMG-Acc": "img_accuracy"},
    "gain_over": "manual",
    "reported": "table_2",
    "labels": {"fkl": "CE + FKL", "task": "w/ Task"},
}


def make_spec(**values: Any) -> AblationSpec:
    base = {"seeds": [0, 1], "axes": AXES, "evaluate": {"benchmark": "digits?types=even"}, "table": TABLE}
    return AblationSpec.model_validate({**base, **values})


def row(method: str, seed: int, accuracy: float, **scores: float) -> ResultRow:
    return ResultRow(method, seed, accuracy, {}, None, 0.0, {}, 1.0, Path("run"), scores=scores)


ROWS = [
    row("fkl-manual", 0, 50.0),
    row("fkl-manual", 1, 52.0),
    row("fkl-task", 0, 53.0),
    row("fkl-task", 1, 59.0),
    row("js-manual", 0, 40.0),
    row("js-task", 1, 45.0),
]


def test_a_table_has_mean_deviation_and_gain_with_the_papers_figures_beside_them() -> None:
    table = shaped_table(make_spec(), ROWS)
    assert table.headers == ("loss", "weighting", "VQA-Acc", "VQA-Acc, paper")
    assert table.lines == (
        ("CE + FKL", "manual", "51.0 ± 1.4", "48.6"),
        ("", "w/ Task", "56.0 ± 4.2 (+5.0)", "49.3 (+0.7)"),
        ("js", "manual", "40.0 [1 of 2]", "49.4"),
        ("", "w/ Task", "45.0 [1 of 2]", "50.5 (+1.1)"),  # no seed has both, so there is no gain
    )


def test_what_the_table_is_of_is_said_below_it() -> None:
    notes = shaped_table(make_spec(), ROWS).notes
    assert notes == (
        "6 of 8 runs are done; [1 of 3]: with one of three seeds.",
        "Mean ± standard deviation over 2 seeds.",
        "(+0.1): difference to manual.",
        "Paper: arXiv 2603.21426v1, tables 1 to 3: MobileVLM V2 7B to 1.7B on ScienceQA.",
        "Ours is digits?types=even: other models and other data than the paper's, of which only the order of methods "
        "can be compared.",
    )
    of_science = shaped_table(make_spec(evaluate={"benchmark": "scienceqa=DIR"}), ROWS).notes
    assert not any("other models" in note for note in of_science)


def test_a_further_score_has_its_column_as_soon_as_a_run_has_it() -> None:
    table = shaped_table(make_spec(seeds=[0]), [row("fkl-manual", 0, 50.0, img_accuracy=30.0)])
    assert table.headers[4:] == ("IMG-Acc", "IMG-Acc, paper")
    assert table.lines[0][2:] == ("50.0", "48.6", "30.0", "54.9")
    assert table.lines[1][2:] == ("-", "49.3 (+0.7)", "-", "55.3 (+0.4)")


def test_the_files_hold_the_table_for_people_and_for_programs(tmp_path: Path) -> None:
    write_shaped(tmp_path, shaped_table(make_spec(), ROWS))
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "**Two losses**",
        "",
        "| loss | weighting | VQA-Acc | VQA-Acc, paper |",
        "| --- | --- | --- | --- |",
        "| CE + FKL | manual | 51.0 ± 1.4 | 48.6 |",
    ]
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert records[1] == {
        "method": "fkl-task",
        "loss": "fkl",
        "weighting": "task",
        "VQA-Acc": "56.0",
        "VQA-Acc deviation": str(18**0.5),
        "VQA-Acc gain": "5.0",
        "VQA-Acc seeds": "2",
        "VQA-Acc paper": "49.3",
        "VQA-Acc paper deviation": "",
        "VQA-Acc paper gain": str(49.3 - 48.6),
    }


def test_without_anything_asked_for_a_table_is_methods_and_accuracies() -> None:
    spec = make_spec(axes={}, methods={"ce": {}, "fkl": {}}, table=None)
    table = shaped_table(spec, [row("ce", 0, 50.0), row("ce", 1, 60.0)])
    assert (table.headers, table.lines) == (("method", "accuracy %"), (("ce", "55.0 ± 7.1"), ("fkl", "-")))
    assert as_markdown(table).startswith("| method | accuracy % |\n")


def test_methods_may_be_compared_with_one_of_them() -> None:
    spec = make_spec(axes={}, methods={"ce": {}, "fkl": {}}, table={"gain_over": "ce"})
    table = shaped_table(spec, [row("ce", 0, 50.0), row("fkl", 0, 49.0)])
    assert table.lines == (("ce", "50.0 [1 of 2]"), ("fkl", "49.0 (-1.0) [1 of 2]"))


def test_the_papers_own_deviation_is_shown_where_it_has_one() -> None:
    spec = make_spec(axes={}, methods={"cosine_probs": {}}, table={"reported": "table_1"})
    assert shaped_table(spec, []).lines == (("cosine_probs", "-", "47.2 ± 0.9"),)


def test_time_and_memory_have_the_digits_they_need() -> None:
    columns = {"s/step": "seconds_per_step", "MiB": "peak_memory_mib"}
    spec = make_spec(axes={}, seeds=[0], methods={"task": {}}, table={"columns": columns})
    measured = ResultRow("task", 0, 1.0, {}, None, 0.0, {}, 1.0, Path(), seconds_per_step=0.0456, peak_memory_mib=812.0)
    assert shaped_table(spec, [measured]).lines == (("task", "0.046", "812"),)


def test_the_terminal_shows_the_same(tmp_path: Path) -> None:
    with (tmp_path / "shown.txt").open("w", encoding="utf-8") as file:
        console = Console(width=120, record=True, file=file)
        print_shaped(shaped_table(make_spec(), ROWS), console)
    shown = console.export_text()
    assert "56.0 ± 4.2 (+5.0)" in shown
    assert "Paper: arXiv 2603.21426v1" in shown


def test_a_comparison_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"table.gain_over: found fixed, expected .*: manual, task, fkl-manual, "):
        shaped_table(make_spec(table={"gain_over": "fixed"}), [])


def test_a_table_that_the_paper_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="table.reported: found table_5, expected one of table_1, table_2, table_3"):
        reported("table_5")

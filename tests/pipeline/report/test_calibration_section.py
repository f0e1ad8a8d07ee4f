"""The report's section on calibration: its table against the metrics, its curves by hand, what is left out when."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss
from tests.pipeline.report.fixture_folders import METHODS, make_scenario, write_lines

from betakd_pipe.report import ReportScenario, write_report
from betakd_pipe.report.calibration import COVERAGES, calibration_curves, calibration_table
from betakd_pipe.report.records import Runs, read_runs

TWO = {name: METHODS[name] for name in ("ce", "fkl-task")}
SCALED = {"temperature": 2.0, "fitted_on": "digits:validation", "expected_calibration_error": 0.03}
SCALED |= {"brier_score": 0.11, "negative_log_likelihood": 0.37}


@pytest.fixture
def scenario(tmp_path: Path) -> ReportScenario:
    return make_scenario(tmp_path / "runs", methods=TWO, seeds=(0, 1), num_steps=60, num_questions=40)


def edit_scores(run: Path, **changes: Any) -> None:
    path = run / "evaluation" / "scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def answers_of(runs: Runs, method: str) -> list[tuple[list[float], list[bool]]]:
    return [
        ([row["confidence"] for row in run.predictions], [row["correct"] for row in run.predictions])
        for run in runs[method]
    ]


def test_the_table_has_scikit_learns_scores_as_means_over_seeds(scenario: ReportScenario) -> None:
    runs = read_runs(scenario)
    table = calibration_table(runs)
    assert table is not None
    assert table.headings == ("method", "accuracy %", "ECE", "Brier", "NLL", "AURC")
    for line in table.lines:
        found = dict(zip(table.headings[1:], line.cells, strict=True))
        answers = answers_of(runs, line.name)
        assert found["Brier"].key == pytest.approx(np.mean([brier_score_loss(c, p) for p, c in answers]))
        assert found["NLL"].key == pytest.approx(np.mean([log_loss(c, p, labels=[0, 1]) for p, c in answers]))
        assert found["Brier"].deviation == pytest.approx(np.std([brier_score_loss(c, p) for p, c in answers], ddof=1))
    assert "temperature" not in table.note
    assert "drawn" not in table.note


def test_temperature_scaling_and_draws_have_columns_where_some_method_has_them(scenario: ReportScenario) -> None:
    for run in read_runs(scenario)["ce"]:
        alone = {"expected_calibration_error": 0.2, "brier_score": 0.3, "negative_log_likelihood": 0.9}
        seed = run.row.seed
        drawn = {"credible_intervals": {"accuracy": [60.0 + seed, 70.0 + seed]}, "map": alone}
        edit_scores(run.row.run, temperature_scaling=SCALED, **drawn)
    table = calibration_table(read_runs(scenario))
    assert table is not None
    assert table.headings[6:] == (
        "ECE, T",
        "Brier, T",
        "NLL, T",
        "ECE, MAP",
        "Brier, MAP",
        "NLL, MAP",
        "credible accuracy %",
    )
    labels, distilled = table.lines
    assert [cell.text for cell in labels.cells[5:]] == [
        *("0.030 ± 0.000", "0.110 ± 0.000", "0.370 ± 0.000"),
        *("0.200 ± 0.000", "0.300 ± 0.000", "0.900 ± 0.000", "60.5 to 70.5"),
    ]
    assert {cell.text for cell in distilled.cells[5:]} == {"–"}
    assert "temperature scaling, fitted on held-out questions" in table.note
    assert "drawn from the posterior" in table.note


def test_the_curves_are_accuracies_of_bins_and_of_the_surest(scenario: ReportScenario) -> None:
    runs = read_runs(scenario)
    curves = calibration_curves(runs)
    assert curves is not None
    expected = []
    for confidences, correct in answers_of(runs, "fkl-task"):
        order = np.argsort(confidences)[::-1]
        expected.append([np.mean(np.array(correct)[order[: int(np.ceil(c * 40 - 1e-9))]]) for c in COVERAGES])
    np.testing.assert_allclose(curves.selective["fkl-task"], np.mean(expected, axis=0))
    together = [pair for answers in answers_of(runs, "ce") for pair in zip(*answers, strict=True)]
    row = curves.reliability["ce"][0]
    inside = [(p, c) for p, c in together if row["low"] <= p < row["high"]]
    assert row["num_answers"] == len(inside)
    assert (row["confidence"], row["accuracy"]) == pytest.approx(tuple(np.mean(inside, axis=0)))
    assert sum(each["num_answers"] for each in curves.reliability["ce"]) == 80


def test_the_page_has_the_section_its_figures_and_their_files(scenario: ReportScenario, tmp_path: Path) -> None:
    page = write_report(tmp_path / "out" / "report.html", "Beta-KD", [], [scenario])
    text = page.read_text(encoding="utf-8")
    assert '<h3 id="D1-calibration">Calibration</h3>' in text
    assert '<a href="#D1-calibration">Calibration</a>' in text
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    for kind in ("reliability", "selective-accuracy"):
        assert {f"D1-{kind}.svg", f"D1-{kind}.png"} <= figures
    table = (tmp_path / "out" / "tables" / "D1-calibration.csv").read_text()
    assert table.startswith('method,accuracy %,"accuracy %, deviation",ECE,')


def test_methods_without_confidences_are_left_out_and_so_is_an_empty_section(
    scenario: ReportScenario, tmp_path: Path
) -> None:
    runs = read_runs(scenario)
    for run in runs["ce"]:
        rows = [{**row, "confidence": None} for row in run.predictions]
        write_lines(run.row.run / "evaluation" / "predictions.jsonl", rows)
    table = calibration_table(read_runs(scenario))
    assert table is not None
    assert [line.name for line in table.lines] == ["fkl-task"]
    labels = replace(scenario, rows=[row for row in scenario.rows if row.method == "ce"])
    assert calibration_table(read_runs(labels)) is None
    page = write_report(tmp_path / "out" / "report.html", "Beta-KD", [], [labels])
    assert "-calibration" not in page.read_text(encoding="utf-8")

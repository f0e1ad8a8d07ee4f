"""The numbers behind the figures, tables and cards, against NumPy and by hand."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipeline.report.fixture_folders import METHODS, make_scenario

from betakd_pipe.report.categories import category_bars
from betakd_pipe.report.curves import Panel, training_panels
from betakd_pipe.report.method_table import method_table
from betakd_pipe.report.records import read_runs, teacher_scores
from betakd_pipe.report.samples import chosen_indices
from betakd_pipe.report.styles import COLOURS, method_styles
from betakd_pipe.report.tables import difference_table

STEPS = (10, 20, 30)


def run_rows(scale: float, **more: Any) -> list[Mapping[str, Any]]:
    """Three rows whose cross-entropy is scale / step."""
    return [{"step": step, "cross_entropy": scale / step, **more} for step in STEPS]


def only(panels: list[Panel], name: str) -> Panel:
    (panel,) = [panel for panel in panels if panel.name == name]
    return panel


def test_a_curve_is_the_mean_over_seeds_with_a_band_of_one_sample_deviation() -> None:
    scales = [1.0, 2.0, 6.0]
    (curve,) = training_panels({"ce": [run_rows(scale) for scale in scales]})[0].curves
    values = np.array([[scale / step for step in STEPS] for scale in scales])
    mean = values.sum(axis=0) / 3
    deviation = np.sqrt(((values - mean) ** 2).sum(axis=0) / 2)
    np.testing.assert_array_equal(curve.steps, STEPS)
    np.testing.assert_allclose(curve.centre, mean, rtol=1e-12)
    np.testing.assert_allclose(curve.low, mean - deviation, rtol=1e-12)
    np.testing.assert_allclose(curve.high, mean + deviation, rtol=1e-12)


def test_the_band_of_beta_joins_the_mean_quantiles() -> None:
    quantiles = {"energy/fkl": 1.0, "beta/fkl/q10": 1.0, "beta/fkl/q90": 4.0}
    runs = [run_rows(1.0, **{**quantiles, "beta/fkl": beta, "beta/fkl/q10": beta / 2}) for beta in (2.0, 3.0)]
    (curve,) = only(training_panels({"fkl": runs}), "beta-fkl").curves
    assert (curve.low[0], curve.centre[0], curve.high[0]) == (1.25, 2.5, 4.0)


def test_what_a_channel_has_by_quartile_is_no_channel() -> None:
    row = {"energy/fkl": 1.0, "energy/fkl/quartile1": 1.0, "energy/fkl/quartile4": 2.0}
    names = [panel.name for panel in training_panels({"fkl": [run_rows(1.0, **row)]})]
    assert names == ["cross_entropy", "energy-fkl"]


def test_one_seed_has_a_band_without_width() -> None:
    (curve,) = training_panels({"ce": [run_rows(1.0)]})[0].curves
    np.testing.assert_array_equal(curve.low, curve.high)


def test_captions_speak_of_seeds_only_where_there_are_several() -> None:
    assert "seeds" not in training_panels({"ce": [run_rows(1.0)]})[0].note
    assert "Mean over seeds; the band is ± one standard deviation." in (
        training_panels({"ce": [run_rows(1.0), run_rows(2.0)]})[0].note
    )


def test_only_steps_that_every_seed_logged_are_drawn() -> None:
    (curve,) = training_panels({"ce": [run_rows(1.0), run_rows(3.0)[:2]]})[0].curves
    np.testing.assert_array_equal(curve.steps, STEPS[:2])
    np.testing.assert_allclose(curve.centre, [0.2, 0.1])


def test_a_method_without_a_figure_has_no_curve_and_a_figure_without_curves_is_left_out() -> None:
    fixed = run_rows(1.0, **{"energy/fkl": 1.0, "beta/fkl": 1.0, "entropy_correlation/fkl": None})
    panels = training_panels({"ce": [run_rows(1.0)], "fkl": [fixed]})
    assert [panel.name for panel in panels] == ["cross_entropy", "energy-fkl", "beta-fkl"]
    assert [curve.method for curve in panels[1].curves] == ["fkl"]


def test_an_undefined_figure_is_a_gap_in_the_curve() -> None:
    rows = run_rows(1.0)
    rows[1] = {"step": 20, "cross_entropy": float("inf")}
    (curve,) = training_panels({"ce": [rows]})[0].curves
    np.testing.assert_array_equal(np.isnan(curve.centre), [False, True, False])


@pytest.mark.parametrize(("largest", "logarithmic"), [(9.9, False), (10.1, True)])
def test_an_axis_is_logarithmic_where_positive_values_span_more_than_a_decade(
    largest: float, logarithmic: bool
) -> None:
    rows = [{"step": 1, "cross_entropy": 1.0}, {"step": 2, "cross_entropy": largest}]
    assert training_panels({"ce": [rows]})[0].logarithmic is logarithmic
    rows[0]["cross_entropy"] = -1.0
    assert not training_panels({"ce": [rows]})[0].logarithmic


def test_correlations_are_never_on_a_logarithmic_axis() -> None:
    rows = [{"step": 1, "energy/f": 1.0, "entropy_correlation/f": 0.01}, {"step": 2, "entropy_correlation/f": 0.9}]
    assert not only(training_panels({"f": [rows]}), "entropy_correlation-f").logarithmic


def predictions(*flags: int) -> list[dict[str, Any]]:
    """Answers to questions of two types in turn; 1 is right."""
    return [
        {"sample_id": f"q{i}", "category": "ab"[i % 2], "answer": "yes" if flag else "no", "correct": bool(flag)}
        for i, flag in enumerate(flags)
    ]


def test_cards_are_the_questions_that_split_the_methods_most_evenly_types_taking_turns() -> None:
    students = [
        predictions(1, 1, 1, 0, 1, 1),
        predictions(1, 1, 1, 1, 0, 1),
        predictions(1, 0, 1, 1, 0, 1),
        predictions(0, 0, 1, 1, 1, 1),
    ]
    assert chosen_indices(students, num_cards=4) == [4, 1, 0, 3]


def test_among_equal_splits_more_different_answers_come_first() -> None:
    students = [predictions(*[0] * 20) for _ in range(3)]
    for student, answer in zip(students, "xyz", strict=True):
        student[14]["answer"] = answer
    assert chosen_indices(students, num_cards=1) == [14]


def test_equal_questions_are_not_drawn_in_their_order() -> None:
    chosen = chosen_indices([predictions(*[1] * 100)])
    assert len(set(chosen)) == 12
    assert max(chosen) > 40
    assert chosen == chosen_indices([predictions(*[1] * 100)])


def test_methods_beyond_the_colours_differ_by_dashes() -> None:
    styles = method_styles(f"method-{index}" for index in range(24))
    assert len({(style.colour, style.dashes) for style in styles.values()}) == 24
    assert [style.dashes for style in styles.values()][: len(COLOURS)] == [()] * len(COLOURS)


def test_the_settings_that_differ_are_set_side_by_side() -> None:
    table = difference_table({"ce": {"steps": 800, "seed": 0}, "task": {"steps": 800, "seed": 0, "weighting": "task"}})
    assert table.headings == ("method", "weighting")
    assert [(line.name, *(cell.text for cell in line.cells)) for line in table.lines] == [("ce", "–"), ("task", "task")]


def test_bars_are_means_over_seeds_by_question_type(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, num_steps=40, num_questions=40)
    runs = read_runs(scenario)
    bars = category_bars(runs, list(teacher_scores(scenario).values()))
    assert bars is not None
    assert bars.teacher is not None
    for method in METHODS:
        rows = [row.accuracy_by_category for row in scenario.rows if row.method == method]
        values = np.array([[row[category] for category in bars.categories] for row in rows])
        np.testing.assert_allclose(bars.means[method], values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(bars.deviations[method], values.std(axis=0, ddof=1), rtol=1e-12)
    one_type = [replace(row, accuracy_by_category={"which": 50.0}) for row in scenario.rows]
    assert category_bars(read_runs(replace(scenario, rows=one_type)), []) is None


def test_several_channels_share_a_column_of_weights_each_by_its_name(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, seeds=(0,), num_steps=40, num_questions=12)
    rows = [scenario.rows[0], replace(scenario.rows[1], metrics={"beta/fkl": 1.5, "beta/vision": 0.5})]
    scenario = replace(scenario, rows=rows)
    table = method_table(scenario, read_runs(scenario), {})
    assert table.headings[-4:] == ("validation %", "agreement %", "ECE", "final β")
    assert {line.name: line.cells[-1].text for line in table.lines} == {
        "teacher": "–",
        "ce": "–",
        "fkl-fixed-1": "fkl 1.50, vision 0.50",
    }


def test_the_strip_of_accuracies_ends_at_multiples_of_five_around_all_seeds(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, seeds=(0, 1), num_steps=40, num_questions=12)
    rows = [replace(row, accuracy=accuracy) for row, accuracy in zip(scenario.rows, range(61, 69), strict=True)]
    for seed in (0, 1):
        (scenario.folder / f"seed-{seed}" / "teacher-evaluation").rename(scenario.folder / f"moved-{seed}")
    scenario = replace(scenario, rows=rows)
    table = method_table(scenario, read_runs(scenario), {})
    assert table.strip is not None
    assert (table.strip.start, table.strip.end) == (60, 70)
    assert [dot.position for dot in table.lines[0].dots] == [10, 20]

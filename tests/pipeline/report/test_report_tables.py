"""The tables on weights, distances, certainty and cost, against the fixture's own numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.report.fixture_folders import METHODS, make_scenario, write_lines

from betakd_pipe.report.categories import quartile_table
from betakd_pipe.report.cost import cache_cost_table, run_cost_table
from betakd_pipe.report.distances import distance_table, distributions
from betakd_pipe.report.examples import weight_examples
from betakd_pipe.report.records import ReportScenario, Run, read_predictions, read_runs
from betakd_pipe.report.scatter import scatters
from betakd_pipe.report.tables import Cell, Line, Table, as_csv, as_markdown
from betakd_pipe.report.weights import weight_stories, weight_table


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> ReportScenario:
    return make_scenario(tmp_path_factory.mktemp("ablation"), num_questions=40)


@pytest.fixture(scope="module")
def runs(scenario: ReportScenario) -> dict[str, list[Run]]:
    return read_runs(scenario)


def cells(table: Table | None, name: str) -> tuple[Cell, ...]:
    assert table is not None
    (line,) = [line for line in table.lines if line.name == name]
    return line.cells


def test_weights_are_told_by_method_from_first_to_last(runs: dict[str, list[Run]]) -> None:
    stories = {story.method: story for story in weight_stories(runs)}
    assert list(stories) == ["fkl-fixed-1", "fkl-task", "fkl-instance"]
    assert [stories[name].is_constant for name in stories] == [True, False, False]
    assert [stories[name].is_per_sample for name in stories] == [False, False, True]
    assert [stories[name].has_collapsed for name in stories] == [False, False, True]
    instance = stories["fkl-instance"]
    rows = [run.metrics for run in runs["fkl-instance"]]
    assert instance.first == pytest.approx(np.mean([each[0]["beta/fkl"] for each in rows]))
    assert (instance.low, instance.high) == pytest.approx((35.0 / 2, 35.0 * 2))
    table = weight_table(runs, list(stories.values()))
    assert [cell.text for cell in cells(table, "fkl-fixed-1")][:3] == ["fkl", "given", "1.000 ± 0.000"]
    assert [cell.text for cell in cells(table, "fkl-instance")][-1] == "yes"


def test_channels_are_those_that_the_metrics_name_whatever_the_caches_call_features(runs: dict[str, list[Run]]) -> None:
    of = runs["fkl-instance"][0]
    settings = {**of.settings, "objective": {"energies": [{"name": "fkl"}], "features": [{"name": "prompt"}]}}
    names = ("feature:prompt_2", "feature:prompt_1", "fkl")  # of one cache merged from two
    row = {f"{kind}/{name}": 2.0 for kind in ("energy", "beta") for name in names}
    row |= {f"energy/{name}/quartile1": 2.0 for name in names}
    samples = {**of.probe[-1]["samples"], **{f"beta/{name}": of.probe[-1]["samples"]["beta/fkl"] for name in names}}
    lone = {key: value for key, value in row.items() if "feature" not in key}  # no sample of the batch has a feature
    merged = replace(
        of, settings=settings, metrics=[row, lone, row], probe=[{**each, "samples": samples} for each in of.probe]
    )
    assert merged.channels == ("fkl", "feature:prompt_1", "feature:prompt_2")
    assert [story.channel for story in weight_stories({"m": [merged]})] == list(merged.channels)
    assert [each.title for each in scatters({"m": [merged]})] == [f"m: {channel}" for channel in merged.channels]
    assert replace(merged, metrics=[]).channels == ("fkl", "feature:prompt")
    assert replace(merged, metrics=[{"cross_entropy": 1.0}]).channels == ()


def test_the_correlation_with_the_students_entropy_is_that_of_the_probed_samples(runs: dict[str, list[Run]]) -> None:
    expected = []
    for run in runs["fkl-instance"]:
        samples = run.probe[-1]["samples"]
        expected.append(np.corrcoef(np.log(samples["beta/fkl"]), samples["student_entropy"])[0, 1])
    (story,) = [story for story in weight_stories(runs) if story.method == "fkl-instance"]
    assert story.with_student_entropy == pytest.approx(np.mean(expected), rel=1e-9)


def test_points_of_samples_are_drawn_only_where_samples_have_weights_of_their_own(runs: dict[str, list[Run]]) -> None:
    (scatter,) = scatters(runs)
    assert scatter.title == "fkl-instance: fkl"
    assert [moment.step for moment in scatter.moments] == [0, 80, 240, 480, 800]
    samples = runs["fkl-instance"][0].probe[2]["samples"]
    np.testing.assert_array_equal(scatter.moments[2].betas, samples["beta/fkl"])
    np.testing.assert_array_equal(scatter.moments[2].teacher_entropy, samples["teacher_entropy"])


def test_examples_are_the_probed_samples_with_the_smallest_and_the_largest_weights(runs: dict[str, list[Run]]) -> None:
    found = weight_examples(runs)
    assert found is not None
    assert (found.method, found.channel, found.problem) == ("fkl-instance", "fkl", "")
    samples = runs["fkl-instance"][0].probe[-1]["samples"]
    order = np.argsort(samples["beta/fkl"])
    assert [each.sample_id for each in found.samples] == [
        samples["sample_id"][place] for place in [*order[:3], *order[-3:]]
    ]
    assert all(each.image is not None and each.question and each.label for each in found.samples)
    assert [line[0] for line in found.samples[0].lines] == ["0", "80", "240", "480", "800"]
    assert found.samples[0].lines[0][3] == "1.00"


def test_examples_without_their_data_show_ids_and_say_why(runs: dict[str, list[Run]]) -> None:
    gone = [
        replace(run, settings={**run.settings, "data": "llava:gone.json?images=gone"}) for run in runs["fkl-instance"]
    ]
    found = weight_examples({"fkl-instance": gone})
    assert found is not None
    assert found.problem.startswith("Only their ids are shown: data file gone.json cannot be read")
    assert all(each.image is None and each.question == each.sample_id for each in found.samples)


def test_distances_are_those_after_a_tenth_of_the_steps_and_at_the_end(runs: dict[str, list[Run]]) -> None:
    early_difference, late_difference, early, late = cells(distance_table(runs), "fkl-task")
    assert (early_difference.key, late_difference.key) == pytest.approx((1.8, 0.0))
    assert (early.key, late.key) == pytest.approx((2.05, 0.25))
    moments = distributions(runs)
    assert [moment.moment for moment in moments] == ["early", "late"]
    np.testing.assert_allclose(moments[0].students["ce"], [0, 0.25, 0.75])
    np.testing.assert_allclose(moments[1].students["ce"], moments[1].teacher)


def test_accuracy_by_the_teachers_certainty_is_parted_at_its_quartiles(
    scenario: ReportScenario, runs: dict[str, list[Run]]
) -> None:
    by_seed = []
    for run in runs["fkl-task"]:
        teacher = read_predictions(scenario.folder / f"seed-{run.row.seed}" / "teacher-evaluation")
        order = np.argsort([answer["confidence"] for answer in teacher])
        right = np.array([answer["correct"] for answer in run.predictions])
        by_seed.append([100 * right[part].mean() for part in np.split(order, 4)])
    table = quartile_table(scenario, runs)
    assert [cell.key for cell in cells(table, "fkl-task")] == pytest.approx(np.mean(by_seed, axis=0).tolist())
    assert table is not None
    assert [line.name for line in table.lines] == ["teacher", *METHODS]


def test_without_a_teachers_evaluation_the_trainings_own_quartiles_are_shown(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, methods={"ce": METHODS["ce"]}, seeds=(0,), num_steps=40, num_questions=12)
    (scenario.folder / "seed-0" / "teacher-evaluation").rename(tmp_path / "moved")
    assert quartile_table(scenario, read_runs(scenario)) is None
    metrics = scenario.rows[0].run / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    quartiles = {f"cross_entropy/quartile{number}": number / 4 for number in (1, 2, 3)}
    write_lines(metrics, [{**row, **quartiles, "cross_entropy/quartile4": None} for row in rows])
    table = quartile_table(scenario, read_runs(scenario))
    assert [cell.text for cell in cells(table, "ce")] == ["–", "0.750", "0.500", "0.250"]
    assert table is not None
    assert "not evaluated on the test questions" in table.note


def test_cost_is_read_from_timings_and_caches(scenario: ReportScenario, runs: dict[str, list[Run]]) -> None:
    table = run_cost_table(runs)
    assert table.headings == ("method", "seconds", "steps/s", "tokens/s, last", "peak memory MiB")
    seconds, speed, tokens, memory = cells(table, "ce")
    assert seconds.key == pytest.approx(6.25)
    assert speed.key == pytest.approx(np.mean([800 / (6.0 + 0.25 * seed) for seed in (0, 1, 2)]))
    assert (tokens.key, memory.key) == (900, 700)
    cache = str(scenario.folder / "seed-0" / "cache")
    found = cells(cache_cost_table(runs), cache)
    assert [cell.text for cell in found[-3:]] == ["4", "not noted", "not noted"]


def test_markdown_escapes_bars_and_csv_has_plain_numbers_and_deviations() -> None:
    line = Line("a|b", (Cell("1.0 ± 0.5", 1.0, 0.5), Cell("–"), Cell("x|y")))
    table = Table("t", ("method", "accuracy", "ECE", "against"), (line,), "A note.")
    assert as_markdown(table).splitlines() == [
        "| method | accuracy | ECE | against |",
        "| --- | --- | --- | --- |",
        r"| a\|b | 1.0 ± 0.5 | – | x\|y |",
        "",
        "A note.",
    ]
    assert as_csv(table) == 'method,accuracy,"accuracy, deviation",ECE,against\na|b,1.0,0.5,,x|y\n'

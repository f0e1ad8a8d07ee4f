"""What a reader who is new to a report needs: the set-up, what stands together, weights over all losses."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from tests.pipeline.report.fixture_folders import make_scenario
from tests.pipeline.report.test_comparisons import run

from betakd_pipe.report.comparisons import Comparison, comparisons
from betakd_pipe.report.method_table import method_table, p_text
from betakd_pipe.report.records import ReportScenario, Run, Runs, read_runs
from betakd_pipe.report.scatter import MAX_KINDS, sample_kinds, scatters
from betakd_pipe.report.scenario import read_scenario
from betakd_pipe.report.setup import setup_table
from betakd_pipe.report.tables import Table
from betakd_pipe.report.weightings import weighting_table
from betakd_stages.data import load_samples
from betakd_stages.data.digits import faults
from betakd_stages.data.specification import parse_specification


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> ReportScenario:
    return make_scenario(tmp_path_factory.mktemp("overview"), num_questions=20)


@pytest.fixture(scope="module")
def runs(scenario: ReportScenario) -> dict[str, list[Run]]:
    return read_runs(scenario)


def facts(scenario: ReportScenario, runs: Runs) -> dict[str, str]:
    return {line.name: line.cells[0].text for line in setup_table(scenario, runs).lines}


def grid(losses: Mapping[str, Mapping[str, int]]) -> dict[str, list[Run]]:
    """A run for each loss and weighting, that answers so many of 20 questions."""
    return {
        f"{loss}-{name}": [run(f"{loss}-{name}", [1] * right + [0] * (20 - right), energies=(loss,), weighting=name)]
        for loss, of in losses.items()
        for name, right in of.items()
    }


def scenario_of(runs: Runs, **more: Any) -> ReportScenario:
    return ReportScenario("s", "A scenario.", [each.row for of in runs.values() for each in of], Path("none"), **more)


def test_the_set_up_has_counts_sizes_faults_and_what_labels_alone_give(
    scenario: ReportScenario, runs: dict[str, list[Run]], tmp_path: Path
) -> None:
    moved = tmp_path / "D1"
    shutil.copytree(scenario.folder, moved)
    rows = [replace(row, run=moved / row.run.relative_to(scenario.folder)) for row in scenario.rows]
    for folder, size in ((rows[0].run / "model", 1500), (moved / "teacher", 2_500_000)):
        folder.mkdir()
        save_file({"a": np.zeros(size - 6, np.float16), "b": np.zeros((2, 3), np.float32)}, folder / "m.safetensors")
    config = moved / "seed-0" / "teacher-evaluation" / "config.yaml"
    config.write_text(yaml.safe_dump({"model": str(moved / "teacher")}), encoding="utf-8")
    own = replace(scenario, rows=rows, folder=moved)
    found = facts(own, read_runs(own))
    accuracy = np.mean([row.accuracy for row in rows if row.method == "ce"])
    assert found.pop("training samples").endswith(" in the teacher’s cache")
    assert found == {
        "test questions": "20",
        "training": "800 steps of 8 samples in each process",
        "wrong on purpose": "30 % of the labels are another answer, drawn at random",
        "student": "1.5 k parameters",
        "teacher": "2.5 M parameters",
        "labels alone": f"ce, accuracy {accuracy:.1f} %",
    }


def test_samples_of_a_step_are_those_of_all_processes_only_where_the_settings_say(
    scenario: ReportScenario, runs: dict[str, list[Run]]
) -> None:
    def training(**given: int | None) -> str:
        run = runs["ce"][0]
        settings = {**run.settings, "training": {**run.settings["training"], "batch_size": 4, **given}}
        return facts(scenario, {"ce": [replace(run, settings=settings)]})["training"]

    assert training(accumulation=3) == "800 steps of 12 samples in each process"
    assert training(global_batch_size=64) == "800 steps of 64 samples"


def test_what_is_not_known_or_not_there_is_left_out_of_the_set_up() -> None:
    manual = {"weighting": {"name": "manual", "options": {"num_batches": 5}}, "data": "llava:photos.json"}
    (plain,) = grid({"fkl": {"manual": 3}}).values()
    settings = {**plain[0].settings, **manual, "training": {"batch_size": 8}}
    runs = {"one": [replace(plain[0], settings=settings)], "two": [replace(plain[0], settings=settings)]}
    assert facts(scenario_of(runs), runs) == {
        "test questions": "20",
        "labels alone": "no method here; one would be ce: {objective: {energies: []}}",
        "manual weights": "the mean cross-entropy divided by the energy’s mean over the first 5 batches, before the "
        "first step; constant from then on",
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", []),
        ("?pixel_noise=0.1&seed=3", []),
        (
            "?label_noise=0.25&noisy_types=which+even",
            ["25 % of the labels of the questions which, even are another ans"],
        ),
        ("?random_labels=1&count=64", ["100 % of the labels are drawn at random from all answers"]),
        ("?confused=2+4+7", ["of 2, 4, 7 each digit is taken for the next, the last for the first"]),
    ],
)
def test_what_is_injected_into_the_digits_is_said_in_words(options: str, expected: list[str]) -> None:
    found = faults(parse_specification(f"digits:transfer{options}"))
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_methods_of_one_loss_stand_together_whatever_their_order() -> None:
    runs = grid({"fkl": {"manual": 9, "task": 12}, "rkl": {"manual": 9, "task": 12}})
    shuffled = {name: runs[name] for name in ("fkl-manual", "rkl-task", "rkl-manual", "fkl-task")}
    table = method_table(scenario_of(shuffled), shuffled, comparisons(shuffled))
    assert [line.name for line in table.lines] == ["fkl-manual", "fkl-task", "rkl-manual", "rkl-task"]
    assert [line.group for line in table.lines] == [("fkl",), ("fkl",), ("rkl",), ("rkl",)]


def test_the_note_explains_the_columns_that_are_there(scenario: ReportScenario, runs: dict[str, list[Run]]) -> None:
    assert "validation is accuracy on the questions set aside" in method_table(scenario, runs, {}).note
    without = grid({"fkl": {"manual": 9, "task": 12}})
    note = method_table(scenario_of(without), without, {}).note
    assert "alidation" not in note
    assert "agreement" not in note
    assert "ECE the expected calibration error" in note
    assert note.startswith("One seed (0): nothing here speaks for other seeds.")


def test_a_p_value_that_no_resample_contradicts_is_a_bound_rounded_up() -> None:
    runs = {"a": [run("a", [0] * 40)], "b": [run("b", [1] * 40)]}
    clear = comparisons(runs)["b"]
    assert clear.p_is_bound
    assert p_text(clear) == "≤ 0.0002"
    assert p_text(replace(clear, adjusted_p_value=36 * clear.p_value)) == "≤ 0.0072"
    assert p_text(replace(clear, adjusted_p_value=1.0)) == "≤ 1"
    assert p_text(Comparison("a", 3, 1.0, 0.1, 2.0, 0.0004, 0.0004)) == "< 0.001"
    assert p_text(Comparison("a", 3, 1.0, 0.1, 2.0, 0.02, 0.06)) == "0.060"


def texts(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {line.name: [cell.text for cell in line.cells] for line in table.lines}


def test_weightings_are_summed_up_over_losses_beside_the_paper() -> None:
    """Of 20 questions, one is 5 points."""
    runs = grid(
        {
            "fkl": {"fixed": 10, "manual": 10, "task": 20},
            "rkl": {"fixed": 8, "manual": 10, "task": 9},
            "js": {"fixed": 0, "manual": 10, "task": 11},
        }
    )
    compared = comparisons(runs)
    table = weighting_table(scenario_of(runs, weightings={"js-manual": "manual"}), runs, compared)
    assert table is not None
    assert table.headings == ("weights", "losses", "mean gain over manual", "better", "worse")
    fixed, task = texts(table)["fixed"], texts(table)["task"]
    assert fixed == ["3", "−20.0", "0 (0)", "2 (1)"]
    assert task == ["3", "+16.7", "2 (1)", "1 (0)"]
    named = {f"{loss}-fixed": "unweighted" for loss in ("fkl", "rkl", "js")}
    gains = {"fkl-fixed": -1.0, "rkl-fixed": -2.0, "fkl-task": 3.0}
    beside = weighting_table(scenario_of(runs, weightings=named, paper_gains=gains), runs, compared)
    assert beside is not None
    assert beside.headings[-1] == "mean gain, paper"
    assert {name: cells[-1] for name, cells in texts(beside).items()} == {"unweighted": "−1.5", "task": "+3.0"}


def test_one_loss_has_no_table_of_weightings() -> None:
    runs = grid({"fkl": {"manual": 9, "task": 12, "instance": 3}})
    assert weighting_table(scenario_of(runs), runs, comparisons(runs)) is None


def test_points_have_the_types_of_their_questions(runs: dict[str, list[Run]]) -> None:
    kinds = sample_kinds(runs)
    data = load_samples(runs["fkl-instance"][0].settings["data"])
    expected = {sample.sample_id: sample.category for sample in data}
    assert kinds
    assert all(expected[sample_id] == kind for sample_id, kind in kinds.items())
    (scatter,) = scatters(runs, kinds)
    ids = runs["fkl-instance"][0].probe[0]["samples"]["sample_id"]
    assert scatter.moments[0].kinds.tolist() == [expected[sample_id] for sample_id in ids]
    assert set(scatters(runs)[0].moments[0].kinds) == {""}


def test_points_have_no_types_where_the_data_are_gone(runs: dict[str, list[Run]]) -> None:
    (first, *_) = runs["fkl-instance"]
    gone = replace(first, settings={**first.settings, "data": "llava:absent.json"})
    assert sample_kinds({"fkl-instance": [gone]}) == {}


def test_rare_types_are_one_kind(monkeypatch: pytest.MonkeyPatch, runs: dict[str, list[Run]]) -> None:
    monkeypatch.setattr("betakd_pipe.report.scatter.MAX_KINDS", 3)
    kinds = sample_kinds(runs)
    assert MAX_KINDS > 3
    assert len(set(kinds.values())) == 3
    assert "other" in kinds.values()


def test_an_ablation_says_which_weights_a_method_has_and_what_the_paper_gained(tmp_path: Path) -> None:
    axes = {
        "loss": {name: {"objective": {"energies": [name]}} for name in ("fkl", "rkl")},
        "weighting": {"unweighted": {"weighting": {"name": "fixed"}}, "manual": {"weighting": {"name": "manual"}}},
    }
    table = {"columns": {"VQA-Acc": "accuracy"}, "gain_over": "manual", "reported": "table_2"}
    spec = {
        "axes": axes,
        "table": table,
        "evaluate": {"benchmark": "digits"},
        "student": "s",
        "cache": "c",
        "data": "d",
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    found = read_scenario(tmp_path)
    assert found.weightings["rkl-unweighted"] == "unweighted"
    assert found.paper_gains == pytest.approx({"fkl-unweighted": 48.2 - 48.6, "rkl-unweighted": 46.2 - 47.8})
    del axes["weighting"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec | {"table": None}), encoding="utf-8")
    assert (read_scenario(tmp_path).weightings, read_scenario(tmp_path).paper_gains) == ({}, {})

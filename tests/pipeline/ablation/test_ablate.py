"""Ablations in real worker processes, with stages that need no torch."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.pipeline.fake_stages import distilled, load_fake_stages

from betakd_pipe.ablation.reading import read_ablation
from betakd_pipe.ablation.run import Ablation, AblationResult, run_ablations
from betakd_pipe.ablation.spec import AblationSpec
from betakd_pipe.ablation.table import mean_and_deviation, print_table
from betakd_stages.errors import ConfigError
from betakd_stages.progress import SilentProgress

FIXED_1 = {"weighting": {"name": "fixed", "options": {"beta": 1}}}
TUNED: dict[str, Any] = {
    "set": {"weighting": {"name": "fixed"}},
    "tune": {"key": "weighting.options.beta", "values": [0.3, 1, 10, 3, 30], "seed": 0},
}


def make_spec(student: Path, **values: Any) -> AblationSpec:
    base: Mapping[str, Any] = {
        "seeds": [0, 1],
        "student": str(student),
        "cache": None,
        "data": "digits:transfer?seed={seed}",
        "base": {"objective": {"energies": []}, "validation": "digits:validation"},
        "evaluate": {"benchmark": "digits"},
        "methods": {"fixed-1": FIXED_1},
    }
    return AblationSpec.model_validate({**base, **values})


def run(spec: AblationSpec, out: Path, jobs: int = 1) -> AblationResult:
    (result,) = run_ablations([Ablation(spec, out)], jobs=jobs, progress=SilentProgress(), load_stages=load_fake_stages)
    return result


def test_every_method_runs_with_every_seed_and_fills_a_table(tmp_path: Path) -> None:
    beta_3 = {"weighting": {"name": "fixed", "options": {"beta": 3}}}
    spec = make_spec(tmp_path, methods={"fixed-1": FIXED_1, "fixed-3": beta_3})
    result = run(spec, tmp_path / "out", jobs=2)
    assert not result.failures
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"], row["accuracy"]) for row in rows] == [
        ("fixed-1", "0", "51.0"),
        ("fixed-1", "1", "61.0"),
        ("fixed-3", "0", "53.0"),
        ("fixed-3", "1", "63.0"),
    ]
    assert rows[2] == {
        "method": "fixed-3",
        "seed": "0",
        "accuracy": "53.0",
        "validation_accuracy": "90.0",
        "agreement": "",
        "ece": "0.125",
        "img_accuracy": "23.0",
        "accuracy_even": "60.0",
        "accuracy_which": "40.0",
        "beta_fkl": "3.0",
        "seconds_per_step": "0.4286",
        "peak_memory_mib": "350",
        "peak_gpu_memory_mib": "",
        "seconds": "6.0",
        "run": "seed-0/runs/fixed-3",
    }
    assert (tmp_path / "out" / "seed-0" / "runs" / "fixed-3" / "evaluation" / "config.yaml").is_file()


def test_a_second_call_runs_nothing_and_gives_the_same_table(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    first = run(spec, tmp_path / "out")
    table = (tmp_path / "out" / "results.csv").read_text(encoding="utf-8")
    second = run(spec, tmp_path / "out")
    assert len(distilled(tmp_path)) == 2
    assert second.rows == first.rows
    assert (tmp_path / "out" / "results.csv").read_text(encoding="utf-8") == table


def test_a_new_method_runs_alone(tmp_path: Path) -> None:
    run(make_spec(tmp_path), tmp_path / "out")
    beta_3 = {"weighting": {"name": "fixed", "options": {"beta": 3}}}
    result = run(make_spec(tmp_path, methods={"fixed-1": FIXED_1, "fixed-3": beta_3}), tmp_path / "out")
    assert [Path(folder).name for folder in distilled(tmp_path)] == ["fixed-1", "fixed-1", "fixed-3", "fixed-3"]
    assert len(result.rows) == 4


def test_a_run_that_was_evaluated_only_in_part_goes_on(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0])
    first = run(spec, tmp_path / "out")
    (tmp_path / "out" / "seed-0" / "runs" / "fixed-1" / "row.json").unlink()
    assert run(spec, tmp_path / "out").rows[0].accuracy == first.rows[0].accuracy
    assert len(distilled(tmp_path)) == 2


def test_identical_configurations_run_once_and_share_the_row(tmp_path: Path) -> None:
    result = run(make_spec(tmp_path, methods={"fixed-1": FIXED_1, "again": FIXED_1}), tmp_path / "out")
    assert len(distilled(tmp_path)) == 2
    again = [row for row in result.rows if row.method == "again"]
    assert [row.seed for row in again] == [0, 1]
    assert {row.run.name for row in again} == {"fixed-1"}


def test_tuning_takes_the_best_candidate_and_of_equal_ones_the_smaller(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(make_spec(tmp_path, methods={"fixed-1": FIXED_1, "tuned": TUNED}), out)
    assert not result.failures
    assert result.tuned["tuned"].chosen == 3
    stored = json.loads((out / "tuned.json").read_text(encoding="utf-8"))["tuned"]
    assert [(each["value"], each["metric"]) for each in stored["candidates"][:4]] == [
        (0.3, 70.0),
        (1, 80.0),
        (10, 90.0),
        (3, 90.0),
    ]
    assert (stored["chosen"], stored["key"], stored["seed"]) == (3, "weighting.options.beta", 0)
    assert [row.accuracy for row in result.rows if row.method == "tuned"] == [53.0, 63.0]
    assert {row.method for row in result.rows} == {"fixed-1", "tuned"}
    # fixed-1 serves as candidate 1, and candidate 3 as the tuned run of seed 0
    names = sorted(str(Path(folder).relative_to(out)) for folder in distilled(tmp_path))
    assert names == [
        "seed-0/runs/fixed-1",
        "seed-0/runs/tuned@0.3",
        "seed-0/runs/tuned@10",
        "seed-0/runs/tuned@3",
        "seed-0/runs/tuned@30",
        "seed-1/runs/fixed-1",
        "seed-1/runs/tuned",
    ]


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    methods = {"broken": {"data": "broken:x"}, "bug": {"data": "bug:x"}, "fixed-1": FIXED_1}
    result = run(make_spec(tmp_path, seeds=[0], methods=methods), tmp_path / "out")
    runs = tmp_path / "out" / "seed-0" / "runs"
    assert result.failures == {
        str(runs / "broken"): "the data is broken: mend it",
        str(runs / "bug"): "ZeroDivisionError: a bug (see log.txt)",
    }
    assert [row.method for row in result.rows] == ["fixed-1"]
    assert [Path(folder).name for folder in distilled(tmp_path)] == ["broken", "bug", "fixed-1", "bug"]
    assert "Traceback" in (runs / "bug" / "log.txt").read_text(encoding="utf-8")
    assert not (runs / "broken").exists()


def test_a_method_is_not_run_when_one_of_its_candidates_failed(tmp_path: Path) -> None:
    tune = {"key": "data", "values": ["digits:transfer", "broken:x"], "seed": 0}
    result = run(make_spec(tmp_path, methods={"tuned": {"set": {}, "tune": tune}}), tmp_path / "out")
    assert result.failures["tuned"] == "not run, because tuned@broken_x failed and nothing could be chosen"
    assert result.rows == []


def test_a_metric_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    tuned = {**TUNED, "tune": {**TUNED["tune"], "metric": "accuracy"}}
    result = run(make_spec(tmp_path, methods={"tuned": tuned}), tmp_path / "out")
    assert result.failures["tuned"].startswith(
        "tune.metric: found accuracy, expected one of validation_accuracy, beta/fkl"
    )


def test_tuning_without_validation_data_is_refused_before_anything_runs(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, base={"objective": {"energies": []}}, methods={"fixed-1": FIXED_1, "tuned": TUNED})
    with pytest.raises(ConfigError, match="method tuned: validation_accuracy needs validation data"):
        run(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_run_of_another_spec_is_refused_by_name(tmp_path: Path) -> None:
    run(make_spec(tmp_path, seeds=[0]), tmp_path / "out")
    other = make_spec(tmp_path, seeds=[0], base={"objective": {"energies": []}, "training": {"steps": 9}})
    result = run(other, tmp_path / "out")
    assert result.rows == []
    (reason,) = result.failures.values()
    assert "was started with validation = 'digits:validation', now it is None" in reason


class CountingProgress(SilentProgress):
    """Progress that adds up."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, description: str, total: int, done: int = 0) -> None:
        self.total, self.done = total, done

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self.done += num_units


def test_progress_counts_every_run_once_whether_it_ran_or_was_there(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, methods={"fixed-1": FIXED_1, "tuned": TUNED})
    for _ in range(2):
        progress = CountingProgress()
        run_ablations([Ablation(spec, tmp_path / "out")], jobs=1, progress=progress, load_stages=load_fake_stages)
        assert (progress.done, progress.total) == (9, 9)


def test_several_ablations_share_one_pool_and_keep_their_own_tables(tmp_path: Path) -> None:
    ablations = [Ablation(make_spec(tmp_path, seeds=[seed]), tmp_path / f"D{seed}") for seed in (1, 2)]
    first, second = run_ablations(ablations, jobs=2, progress=SilentProgress(), load_stages=load_fake_stages)
    assert (first.rows[0].accuracy, second.rows[0].accuracy) == (61.0, 71.0)
    assert (tmp_path / "D1" / "results.csv").is_file()
    assert (tmp_path / "D2" / "results.csv").is_file()


def test_the_table_shows_mean_and_deviation_per_method(tmp_path: Path) -> None:
    rows = run(make_spec(tmp_path), tmp_path / "out").rows
    console = Console(width=80, record=True, file=(tmp_path / "table.txt").open("w", encoding="utf-8"))
    print_table(rows, console)
    console.file.close()
    (line,) = [line for line in console.export_text().splitlines() if "fixed-1" in line]
    assert "56.0 ± 7.1" in line
    assert "80.0 ± 0.0" in line


def test_mean_and_deviation_claims_no_deviation_of_one_figure() -> None:
    assert mean_and_deviation([2.0]) == "2.0"
    assert mean_and_deviation([1.0, 3.0]) == "2.0 ± 1.4"
    assert mean_and_deviation([1.0, None]) == "-"


def test_an_ablation_is_read_back_from_wherever_its_folder_lies_now(tmp_path: Path) -> None:
    same = {"weighting": {"name": "fixed", "options": {"beta": 3}}}
    spec = make_spec(tmp_path, methods={"fixed-1": FIXED_1, "fixed-3": same, "again": same, "tuned": TUNED})
    result = run(spec, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    read, rows = read_ablation(tmp_path / "elsewhere")
    assert read == spec
    assert [(row.method, row.seed, row.accuracy) for row in rows] == [
        (row.method, row.seed, row.accuracy) for row in result.rows
    ]
    assert all(row.run.is_dir() for row in rows)


def test_what_is_done_of_an_ablation_is_read_back(tmp_path: Path) -> None:
    run(make_spec(tmp_path, methods={"fixed-1": FIXED_1}), tmp_path / "out")
    spec = tmp_path / "out" / "spec.yaml"
    spec.write_text(spec.read_text(encoding="utf-8") + "  more:\n    set: {seed: 5, max_length: 9}\n", encoding="utf-8")
    _, rows = read_ablation(tmp_path / "out")
    assert [row.method for row in rows] == ["fixed-1", "fixed-1"]


def test_a_folder_without_an_ablation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no spec.yaml, so it is no ablation: name a folder that betakd-pipe"):
        read_ablation(tmp_path)

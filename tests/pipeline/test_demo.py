"""The demo's sentences say what the rows say, and the whole command leaves what the README names."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.spec import plan_run
from betakd_pipe.cli import main
from betakd_pipe.demo import _ablation, added_method
from betakd_pipe.demo_results import conclusions
from betakd_pipe.scenarios import DEMO_SCENARIOS
from betakd_stages.energies import ENERGIES
from betakd_stages.settings import DistillSettings
from betakd_stages.weightings import WEIGHTINGS


def row(method: str, accuracy: float) -> ResultRow:
    return ResultRow(method, 0, accuracy, {}, None, 0.0, {}, 1.0, Path("run"))


ACCURACIES = {
    "ce": 60.0,
    "fkl-fixed-1": 80.0,
    "fkl-fixed-tuned": 85.0,
    "fkl-shuffled-teacher": 50.0,
    "fkl-task": 84.0,
    "fkl-instance": 70.0,
    "fkl-instance-entropy": 86.5,
    "fkl-robust": 84.5,
}


def test_the_sentences_report_wins_and_losses_alike() -> None:
    first, second = conclusions({"D1": [row(method, value) for method, value in ACCURACIES.items()]})
    assert first == (
        "Test accuracy: D1 60.0 % with labels alone, 80.0 % with the cached teacher, 50.0 % with its records shuffled: "
        "the teacher beats the labels and the control loses, so it is the cache that helps."
    )
    assert second == (
        "Beta-KD against the tuned fixed weight, in points: D1 task -1.0, instance -15.0, instance-entropy +1.5, "
        "robust -0.5."
    )


@pytest.mark.parametrize(
    ("method", "accuracy", "end"),
    [
        ("fkl-shuffled-teacher", 81.0, ": THE CONTROL DID NOT LOSE, so do not trust this run."),
        ("ce", 81.0, ": the control loses, but the teacher does not beat the labels everywhere."),
    ],
)
def test_what_speaks_against_the_cache_is_said_too(method: str, accuracy: float, end: str) -> None:
    rows = {"D1": [row(name, value) for name, value in {**ACCURACIES, method: accuracy}.items()]}
    assert conclusions(rows)[0].endswith(end)


def demo_methods(folder: Path, added: dict[str, Any]) -> dict[str, DistillSettings]:
    """The settings of every method of the demo's first scenario."""
    spec = _ablation(DEMO_SCENARIOS[0], folder, [0], quick=True, added=added).spec
    return {method: plan_run(spec, folder, method, 0).settings for method in spec.methods}


@pytest.mark.parametrize("energy", sorted(ENERGIES))
def test_any_energy_with_any_weighting_joins_the_methods_of_the_recipe(tmp_path: Path, energy: str) -> None:
    recipe = demo_methods(tmp_path, added_method([], None))
    for weighting in WEIGHTINGS:
        methods = demo_methods(tmp_path, added_method([energy], weighting))
        added = methods[f"{energy}-{weighting}"]
        assert [one.name for one in added.objective.energies] == [energy]
        assert added.weighting.name == weighting
        assert added.training == recipe["ce"].training
        assert {name: methods[name] for name in recipe} == recipe


def test_an_added_method_has_a_default_for_what_is_not_named_and_may_have_several_energies() -> None:
    assert [*added_method(["rkl", "tvd"], None)] == ["rkl+tvd-task"]
    assert [*added_method([], "manual")] == ["fkl-manual"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--energy", "reverse_kl"], "unknown energy 'reverse_kl': choose one of adaptive_kl, alpha_beta"),
        (["--energy", "rkl", "--weighting", "learned"], "unknown weighting 'learned': choose one of fixed, gradnorm"),
    ],
)
def test_an_unknown_name_stops_the_demo_before_any_teacher_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seeds", "0", "--quick", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.long
def test_the_whole_demo_ends_with_table_report_and_results(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("betakd-pipe")), "demo", "--quick", "--seeds", "0", "--out", "demo"]
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    assert "fkl-shuffled-teacher" in done.stdout
    assert "Report: demo/report.html" in done.stdout
    with (tmp_path / "demo" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["scenario"], row["method"]) for row in rows} == {
        (scenario, method) for scenario in ("D1", "D2") for method in ("teacher", "fkl-pure", *ACCURACIES)
    }
    for scenario in ("D1", "D2"):
        for name in ("teacher", "cache", "runs/ce/model"):
            assert (tmp_path / "demo" / scenario / "seed-0" / name).is_dir()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert again.returncode == 0
    assert again.stdout == done.stdout

"""What an ablation would do: the runs in order, their cost, and nothing on disk."""

from pathlib import Path

import pytest
from tests.pipeline.ablation.test_ablate import FIXED_1, TUNED, make_spec, run
from tests.world import World

from betakd_pipe.ablation.dry_run import RunCost, describe_plan, plan
from betakd_pipe.ablation.run import Ablation
from betakd_pipe.ablation.spec import PlannedRun
from betakd_pipe.cli import main
from betakd_stages.progress import Progress, SilentProgress

BETA_3 = {"weighting": {"name": "fixed", "options": {"beta": 3}}}


def measure(run: PlannedRun, progress: Progress) -> RunCost:
    return RunCost(1800.0, 2e9, 4e9, f"a few steps of {run.name}")


def lines(ablation: Ablation, num_slots: int = 1) -> list[str]:
    return list(describe_plan(plan(ablation, num_slots, SilentProgress(), measure)))


def test_runs_are_listed_in_order_with_those_that_are_equal_and_their_cost(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0], methods={"fixed-1": FIXED_1, "again": FIXED_1, "fixed-3": BETA_3})
    assert lines(Ablation(spec, tmp_path / "out"), num_slots=4) == [
        "   1  fixed-1 seed 0  to do",
        "   2  again seed 0    the same as fixed-1 seed 0",
        "   3  fixed-3 seed 0  to do",
        "runs: 3: 0 done, 2 to do, 1 equal to another or refused",
        "time: 1.8e+03 s a run (by a few steps of fixed-3 seed 0); 1 h in all, 0.5 h with 2 at a time",
        "memory: 2 GB a run at most, 4 GB for 2 at a time",
        "GPU memory: 4 GB a run at most",
    ]
    assert not (tmp_path / "out").exists()


def test_what_is_done_tells_the_cost_of_the_rest_and_another_spec_s_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(make_spec(tmp_path, seeds=[0]), out)
    before = sorted(out.rglob("*"))
    methods = {"fixed-1": FIXED_1, "fixed-3": BETA_3, "tuned": TUNED}
    found = lines(Ablation(make_spec(tmp_path, seeds=[0, 1], methods=methods), out))
    assert found[0] == "   1  fixed-1 seed 0    done"
    assert found[1] == "   2  fixed-3 seed 0    to do"
    assert next(line for line in found if "tuned@3 " in line).endswith("tuned@3 seed 0    the same as fixed-3 seed 0")
    assert "and 2 of tuned methods after these" in found[-3]
    assert "(by the 1 that are done)" in found[-2]
    assert found[-1] == "memory: 0.367 GB a run at most"  # 350 MiB
    other = make_spec(tmp_path, seeds=[0], base={"objective": {"energies": []}, "training": {"steps": 9}})
    assert "refused: " in lines(Ablation(other, out))[0]
    assert sorted(out.rglob("*")) == before


def test_nothing_left_to_do_costs_nothing(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0])
    run(spec, tmp_path / "out")
    assert lines(Ablation(spec, tmp_path / "out")) == [
        "   1  fixed-1 seed 0  done",
        "runs: 1: 1 done, 0 to do, 0 equal to another or refused",
    ]


def test_the_command_measures_a_real_run_and_leaves_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--student", str(world.student), "--cache", str(world.cache), "--data", world.data]
    flags = ["--recipe", "digits", "--benchmark", "digits?count=8", "--set", "base.training.batch_size=8"]
    out = tmp_path / "out"
    assert main(["ablate", "paper-table-6", *inputs, *flags, "--jobs", "2", "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == "   3  instance seed 0    to do"
    assert "(by a few steps of instance seed 0, without loading and evaluation)" in printed[4]
    assert printed[5].startswith("memory: ")
    assert not out.exists()

"""Runs in real worker processes: retries, deaths, signals, slots; with stages that need no torch."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.ablation.test_ablate import FIXED_1, make_spec, run
from tests.pipeline.fake_stages import GPUS, distilled, load_fake_stages

from betakd_pipe.ablation.execution import Failure
from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.ablation.run import Ablation, run_ablations
from betakd_pipe.ablation.spec import PlannedRun
from betakd_stages.progress import SilentProgress


def made(out: Path, method: str) -> dict[str, Any]:
    """What the fake stage noted in a run of seed 0."""
    noted: dict[str, Any] = json.loads((out / "seed-0" / "runs" / method / "result.json").read_text(encoding="utf-8"))
    return noted


def fixed(beta: float, **more: Any) -> dict[str, Any]:
    return {"weighting": {"name": "fixed", "options": {"beta": beta}}, **more}


def test_a_worker_that_is_killed_costs_its_own_run_alone_and_that_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    methods = {"killed": {"data": "killed:x"}, "once": fixed(3, data="killed-once:x"), "fixed-1": FIXED_1}
    with caplog.at_level(logging.WARNING):
        result = run(make_spec(tmp_path, seeds=[0], methods=methods), tmp_path / "out")
    assert [row.method for row in result.rows] == ["once", "fixed-1"]
    assert list(result.failures.values()) == [
        "its worker process died, perhaps for want of memory: --jobs 1 needs least (exit code -9)"
    ]
    names = [Path(folder).name for folder in distilled(tmp_path)]
    assert names == ["killed", "once", "fixed-1", "killed", "once"]
    assert "once seed 0 failed and will be tried again: its worker process died" in caplog.text


def test_a_run_is_tried_again_as_often_as_asked(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0], methods={"once": {"data": "bug-once:x"}})
    (result,) = run_ablations(
        [Ablation(spec, tmp_path / "out")], jobs=1, retries=0, progress=SilentProgress(), load_stages=load_fake_stages
    )
    assert list(result.failures.values()) == ["ZeroDivisionError: a bug (see log.txt)"]
    assert len(distilled(tmp_path)) == 1


def test_every_run_has_a_process_of_its_own_where_that_is_asked_for(tmp_path: Path) -> None:
    methods = {f"fixed-{beta}": fixed(beta) for beta in (1, 3)}
    run(make_spec(tmp_path, seeds=[0], methods=methods, own_processes=True), tmp_path / "out")
    assert len({made(tmp_path / "out", method)["process"] for method in methods}) == 2


def test_every_gpu_gets_a_worker_that_sees_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPUS, "3 GPU-5")
    methods = {f"fixed-{beta}": fixed(beta) for beta in (1, 3, 10)}
    out = tmp_path / "out"
    ablation = Ablation(make_spec(tmp_path, seeds=[0], methods=methods), out)
    run_ablations([ablation], progress=SilentProgress(), load_stages=load_fake_stages)
    places = {made(out, method)["process"]: made(out, method)["gpu"] for method in methods}
    assert sorted(places.values()) == ["3", "GPU-5"]


class Notes:
    """A watch that writes down what it is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []

    def began(self, run: PlannedRun) -> None:
        self.notes.append(("began", run.name))

    def moved(self, run: PlannedRun, what: str, done: int, total: int) -> None:
        self.notes.append(("moved", run.name, what, done, total))

    def ended(self, run: PlannedRun, outcome: ResultRow | Failure) -> None:
        self.notes.append(("ended", run.name, isinstance(outcome, ResultRow)))


def test_a_worker_does_one_run_after_the_other_and_a_watch_is_told_of_each(tmp_path: Path) -> None:
    """What a user has to mend is not tried again."""
    watch = Notes()
    methods = {"fixed-1": FIXED_1, "broken": {"data": "broken:x"}, "fixed-3": fixed(3)}
    spec = make_spec(tmp_path, seeds=[0], methods=methods)
    run_ablations(
        [Ablation(spec, tmp_path / "out")],
        jobs=1,
        progress=SilentProgress(),
        watch=watch,
        load_stages=load_fake_stages,
    )
    assert watch.notes == [
        ("began", "fixed-1 seed 0"),
        ("moved", "fixed-1 seed 0", "student", 0, 2),
        ("ended", "fixed-1 seed 0", True),
        ("began", "broken seed 0"),
        ("ended", "broken seed 0", False),
        ("began", "fixed-3 seed 0"),
        ("moved", "fixed-3 seed 0", "student", 0, 2),
        ("ended", "fixed-3 seed 0", True),
    ]
    assert len({made(tmp_path / "out", method)["process"] for method in ("fixed-1", "fixed-3")}) == 1


SLOW_ABLATION = """
import sys
from pathlib import Path
from betakd_pipe.ablation.run import Ablation, run_ablations
from betakd_stages.progress import SilentProgress
from tests.pipeline.fake_stages import load_fake_stages
from tests.pipeline.ablation.test_ablate import make_spec

if __name__ == "__main__":
    student = Path(sys.argv[1])
    spec = make_spec(student, data=sys.argv[2])
    run_ablations([Ablation(spec, student / "out")], jobs=1, progress=SilentProgress(), load_stages=load_fake_stages)
"""


def begun(student: Path, data: str) -> "subprocess.Popen[str]":
    """An ablation of two seeds on these data, in a process of its own."""
    script = student / "slow.py"
    script.write_text(SLOW_ABLATION, encoding="utf-8")
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, str(script), str(student), data],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, stop: signal.Signals) -> None:
    process = begun(tmp_path, "slow:{seed}")
    wait_until(lambda: len(distilled(tmp_path)) == 1)
    workers = children(process.pid)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=20)
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert workers
    if stop is not signal.SIGKILL:
        assert stderr.count("Traceback") == 1, stderr  # the exception of the script itself
    if stop is signal.SIGTERM:
        assert "stopped by SIGTERM with 0 of 2 runs done; the same command again goes on from there" in stderr


def test_after_a_kill_the_same_ablation_does_what_was_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begun(tmp_path, "slow-second:{seed}")
    wait_until(lambda: len(distilled(tmp_path)) == 2 and (out / "seed-0" / "runs" / "fixed-1" / "row.json").is_file())
    wait_until(lambda: "1 of 2 runs are done" in (out / "table.md").read_text(encoding="utf-8"))
    process.kill()
    process.communicate(timeout=20)
    (tmp_path / "quick").touch()
    result = run(make_spec(tmp_path, data="slow-second:{seed}"), out)
    assert [(row.seed, row.accuracy) for row in result.rows] == [(0, 51.0), (1, 61.0)]
    names = [str(Path(folder).relative_to(out)) for folder in distilled(tmp_path)]
    assert names.count("seed-0/runs/fixed-1") == 1
    assert names.count("seed-1/runs/fixed-1") == 2
    assert "runs are done" not in (out / "table.md").read_text(encoding="utf-8")


def wait_until(condition: Any, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "nothing happened in time"
        time.sleep(0.05)


def children(process_id: int) -> list[str]:
    return Path(f"/proc/{process_id}/task/{process_id}/children").read_text(encoding="utf-8").split()

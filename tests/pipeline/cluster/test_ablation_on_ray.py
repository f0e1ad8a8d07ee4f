"""`ablate --ray`: runs as tasks of a real cluster give the tables of the local run, losses included."""

import csv
import logging
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from tests.pipeline.ablation.test_ablate import FIXED_1, make_spec
from tests.pipeline.cluster.local_cluster import LocalCluster
from tests.pipeline.cluster.test_cache_on_ray import writer_of
from tests.pipeline.fake_stages import distilled, load_fake_stages
from tests.world import World

from betakd_pipe.ablation.run import Ablation, AblationResult, run_ablations
from betakd_pipe.cli import main
from betakd_pipe.cluster.ablation import ray_slots
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import RaySettings

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

SPEC = """
seeds: [0, 1]
base:
  training: {steps: 60, batch_size: 8, learning_rate: 1.0e-3, checkpoint_every_steps: 20, num_threads: 1}
evaluate: {benchmark: 'digits?count=8', max_new_tokens: 2}
methods:
  fkl: {objective: {energies: [fkl]}, weighting: {name: instance}}
  ce: {objective: {energies: []}}
"""
OF_THE_MACHINE = {"seconds", "seconds_per_step", "whole_seconds", "peak_memory_mib", "peak_gpu_memory_mib"}


def figures(out: Path) -> list[dict[str, str]]:
    """The rows of results.csv without what a machine takes for them."""
    with (out / "results.csv").open(encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in OF_THE_MACHINE} for row in csv.DictReader(file)
        ]


def kill_at_work(run: Path, killed: list[int]) -> None:
    """Kill the process of a run once it has a checkpoint."""
    deadline_s = time.monotonic() + 300
    while not list(run.glob("checkpoints/checkpoint-*/trainer_state.json")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    killed.append(writer_of(run / "log.txt"))
    os.kill(killed[0], signal.SIGKILL)


def test_a_cluster_that_loses_a_worker_fills_the_table_of_one_machine(
    world: World, tmp_path: Path, cluster: LocalCluster
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    inputs = ["--student", str(world.student), "--cache", str(world.cache), "--data", world.data]
    command = ["ablate", str(tmp_path / "spec.yaml"), *inputs]
    assert main([*command, "--jobs", "1", "--out", str(tmp_path / "local")]) == 0
    run, killed = tmp_path / "ray" / "seed-0" / "runs" / "fkl", list[int]()
    killer = threading.Thread(target=kill_at_work, args=(run, killed))
    killer.start()
    assert main([*command, "--ray", cluster.address, "--out", str(tmp_path / "ray")]) == 0
    killer.join()
    log = (run / "log.txt").read_text(encoding="utf-8")
    assert log.count("continued by betakd-pipe") == 1, "the kill came too late"
    assert len(figures(tmp_path / "local")) == 4
    assert figures(tmp_path / "ray") == figures(tmp_path / "local")


def on_ray(cluster: LocalCluster, out: Path, student: Path, methods: dict[str, object]) -> AblationResult:
    spec = make_spec(student, seeds=[0], methods=methods)

    (result,) = run_ablations(
        [Ablation(spec, out)],
        retries=1,
        progress=SilentProgress(),
        load_stages=load_fake_stages,
        open_executor=partial(ray_slots, cluster.address, RaySettings(max_retries=1), out),
    )
    return result


def test_runs_fail_alone_and_what_died_or_met_a_bug_is_tried_again(
    cluster: LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    methods: dict[str, object] = {
        "killed": {"data": "killed:x"},
        "once": {"data": "killed-once:x"},
        "bug": {"data": "bug-once:x"},
        "broken": {"data": "broken:x"},
        "fixed-1": FIXED_1,
    }
    with caplog.at_level(logging.WARNING):
        result = on_ray(cluster, tmp_path / "out", tmp_path, methods)
    assert [row.method for row in result.rows] == ["once", "bug", "fixed-1"]
    reasons = {Path(run).name: reason for run, reason in result.failures.items()}
    assert reasons["broken"] == "the data is broken: mend it"
    assert reasons["killed"].startswith("its worker or node was lost 2 times, perhaps for want of memory: the same com")
    counts = [Path(folder).name for folder in distilled(tmp_path)]
    assert {name: counts.count(name) for name in methods} == {
        "killed": 2,
        "once": 2,
        "bug": 2,
        "broken": 1,
        "fixed-1": 1,
    }
    assert "bug seed 0 failed and will be tried again: ZeroDivisionError: a bug (see log.txt)" in caplog.text

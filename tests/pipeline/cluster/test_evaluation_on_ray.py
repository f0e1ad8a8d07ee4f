"""`evaluate --ray`: benchmarks as tasks of a real cluster give the scores of the local run, losses included."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.pipeline.cluster.local_cluster import LocalCluster
from tests.pipeline.cluster.test_cache_on_ray import writer_of
from tests.stages.evaluation.official_files import write_gqa
from tests.stages.models.world import folder_of

from betakd_pipe.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

DIGITS = "digits:test?count=400"
UNDER_WAY = "answers-under-way.jsonl"
OF_THE_FOLDER = {"log.txt", "environment.json"}


class KilledWorker(threading.Thread):
    """Kills whoever answers a benchmark once some answers are there, and remembers which were."""

    def __init__(self, under_way: Path) -> None:
        super().__init__(daemon=True)
        self._under_way = under_way
        self.answered = b""
        self.start()

    def run(self) -> None:
        deadline_s = time.monotonic() + 300
        while self._num_lines() < 1 + 2 * 8 and time.monotonic() < deadline_s:
            time.sleep(0.002)
        os.kill(writer_of(self._under_way), signal.SIGKILL)
        self.answered = self._under_way.read_bytes()

    def _num_lines(self) -> int:
        return self._under_way.read_bytes().count(b"\n") if self._under_way.is_file() else 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model and two benchmarks."""
    folder = tmp_path_factory.mktemp("evaluation")
    model, gqa = str(folder_of("llava (CLIP)")), write_gqa(folder / "gqa")
    return [model, "--benchmark", DIGITS, "--benchmark", gqa, "--set", "max_new_tokens=3", "--set", "batch_size=8"]


@pytest.fixture(scope="module")
def local(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "scores"
    assert main(["evaluate", *inputs, "--out", str(out)]) == 0
    return out


def files_in(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name not in OF_THE_FOLDER}


def test_a_cluster_that_loses_a_worker_writes_the_scores_of_one_process(
    inputs: list[str], local: Path, tmp_path: Path, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    killed = KilledWorker(out / "digits" / UNDER_WAY)
    more = ["--ray", cluster.address, "--set", "ray.max_retries=1"]
    assert main(["evaluate", *inputs, *more, "--out", str(out)]) == 0
    killed.join()
    assert 1 + 2 * 8 <= killed.answered.count(b"\n") < 400, "the kill came too late to lose anything"
    assert files_in(out) == files_in(local)
    assert sorted(files_in(out)) == [
        "config.yaml",
        "digits/predictions.jsonl",
        "digits/scores.json",
        "gqa/predictions.jsonl",
        "gqa/scores.json",
        "scores.json",
    ]
    printed = capsys.readouterr()
    assert "evaluate: 404/404" in printed.err
    assert "gqa.official.accuracy: " in printed.out


def test_a_benchmark_that_fails_is_named_with_its_message_and_the_same_command_goes_on(
    inputs: list[str], local: Path, tmp_path: Path, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process answers the second benchmark: an error of the user is not tried again."""
    out = tmp_path / "scores"
    command = ["evaluate", *inputs, "--ray", cluster.address, "--out", str(out)]
    (out / "gqa").mkdir(parents=True)
    (out / "config.yaml").write_bytes((local / "config.yaml").read_bytes())
    with (out / "gqa" / UNDER_WAY).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"betakd-pipe: benchmark gqa: {out / 'gqa'} is being written by another process: wait for it, or end it"
    )
    assert main(command) == 0
    assert files_in(out) == files_in(local)

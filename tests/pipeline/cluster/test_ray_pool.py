"""What the scheduler does on tiny tasks: it repeats what was in flight on a lost node, and no more."""

import time
from pathlib import Path

import pytest
from tests.pipeline.cluster.local_cluster import LocalCluster
from tests.pipeline.cluster.tiny_tasks import die, fail, note_and_wait, wait_to_be_interrupted

from betakd_pipe.cluster.ray_pool import ClusterError, ray_pool
from betakd_stages.errors import ConfigError, DataError
from betakd_stages.settings import RaySettings

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


def starts(folder: Path, number: int) -> int:
    return len(list(folder.glob(f"{number}-*")))


def test_a_lost_node_repeats_the_tasks_in_flight_there_and_no_other(cluster: LocalCluster, tmp_path: Path) -> None:
    """18 tasks of a second, two nodes of one core and one of two, which dies in the middle of its second pair."""
    extra = cluster.add_node(num_cpus=2)
    (daemon,) = extra.all_processes["raylet"]
    with ray_pool(cluster.address, RaySettings(), shared=tmp_path) as pool:
        futures = [pool.submit(note_and_wait, tmp_path, number) for number in range(18)]
        while len(list(tmp_path.glob(f"*-{daemon.process.pid}-*"))) < 4:
            time.sleep(0.01)
        time.sleep(0.2)
        cluster.lose(extra)
        assert [future.result(timeout=120) for future in futures] == [number * number for number in range(18)]
    repeated = [number for number in range(18) if starts(tmp_path, number) > 1]
    assert 1 <= len(repeated) <= 2
    assert sum(starts(tmp_path, number) for number in range(18)) == 18 + len(repeated)


def test_an_error_of_a_task_comes_as_itself_and_is_not_tried_again(cluster: LocalCluster, tmp_path: Path) -> None:
    with ray_pool(cluster.address, RaySettings(), shared=tmp_path) as pool:
        error = pool.submit(fail, "sample 7: broken").exception(timeout=120)
    assert isinstance(error, DataError)
    assert str(error) == "sample 7: broken"


def test_a_task_that_dies_every_time_is_given_up_in_one_line(cluster: LocalCluster, tmp_path: Path) -> None:
    with ray_pool(cluster.address, RaySettings(max_retries=1), shared=tmp_path) as pool:
        error = pool.submit(die).exception(timeout=120)
    assert isinstance(error, ClusterError)
    assert str(error).startswith("its worker or node was lost 2 times, perhaps for want of memory: the same command ag")
    assert "\n" not in str(error)


def test_what_no_node_has_is_refused_before_anything_runs(cluster: LocalCluster, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError) as caught,
        ray_pool(cluster.address, RaySettings(num_gpus=2), shared=tmp_path),
    ):
        pass
    assert str(caught.value) == (
        f"a task asks for 2 GPUs and 1 CPUs, and no node of the cluster {cluster.address} has both (nodes have "
        "0 and 0, 0 and 1): lower ray.num_gpus or ray.num_cpus, or start a larger node"
    )


def test_tasks_that_no_node_that_is_left_can_run_are_given_up(cluster: LocalCluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2)
    with ray_pool(cluster.address, RaySettings(num_cpus=2), shared=tmp_path) as pool:
        futures = [pool.submit(note_and_wait, tmp_path, number) for number in range(10)]
        futures[0].result(timeout=120)
        cluster.lose(node)
        error = futures[-1].exception(timeout=120)
    assert isinstance(error, ClusterError)
    assert str(error) == "no node is left with 0 GPUs and 2 CPUs: start one, and the same command again goes on"


def test_a_folder_that_nodes_do_not_share_is_named(cluster: LocalCluster, tmp_path: Path) -> None:
    with ray_pool(cluster.address, RaySettings(), shared=tmp_path / "out" / "cache") as pool:
        for marker in tmp_path.glob(".betakd-pipe-*"):
            marker.rename(tmp_path / "hidden")
        error = pool.submit(note_and_wait, tmp_path, 1).exception(timeout=120)
        (tmp_path / "hidden").rename(marker)
    assert isinstance(error, ClusterError)
    assert f" does not see {tmp_path} of the machine that asks: the folder of the command and that of the" in str(error)
    assert not list(tmp_path.iterdir())


def test_tasks_are_interrupted_when_the_pool_is_left_by_an_exception(cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ray_pool(cluster.address, RaySettings(), shared=tmp_path) as pool:  # noqa: PT012
        futures = [pool.submit(wait_to_be_interrupted, tmp_path, number) for number in range(4)]
        while len(list(tmp_path.glob("begun-*"))) < 2:
            time.sleep(0.02)
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.glob("kept-*")) == sorted(
        path.name.replace("begun", "kept") for path in tmp_path.glob("begun-*")
    )
    assert len(list(tmp_path.glob("kept-*"))) == 2
    assert not any(future.done() and future.exception() is None for future in futures)

"""A real Ray cluster on this machine: a head without cores, where the command runs, and nodes that come and go."""

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest


class LocalCluster:
    """Nodes of one core each, each with Ray's own daemon and workers; `address` is what --ray takes."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": folder},
        )
        self.address: str = self._cluster.address

    def add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=1)

    def lose(self, node: Any) -> None:
        """Kill a node with all its workers, as a power cut does."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def head() -> Iterator[LocalCluster]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # sockets have short paths
        cluster = LocalCluster(folder)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def cluster(head: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster with two nodes."""
    nodes = [head.add_node(), head.add_node()]
    yield head
    for node in nodes:
        if node.any_processes_alive():
            head.lose(node)

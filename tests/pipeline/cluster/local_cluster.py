"""A real Ray cluster on this machine: a head without cores, where the command runs, and nodes that come and go."""

from typing import Any


class LocalCluster:
    """Nodes with Ray's own daemon and workers each; `address` is what --ray takes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address: str = self._cluster.address

    def add_node(self, num_cpus: int = 1) -> Any:
        return self._cluster.add_node(num_cpus=num_cpus)

    def lose(self, node: Any) -> None:
        """Kill a node with all its workers, as a power cut does."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()

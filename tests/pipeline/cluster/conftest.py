"""The cluster of the tests in this folder, which `make test-ray` runs."""

import tempfile
from collections.abc import Iterator

import pytest
from tests.pipeline.cluster.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A head and two nodes of one core; a test that loses a node adds one of its own."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # the paths of sockets must be short
        cluster = LocalCluster(folder)
        try:
            cluster.add_node()
            cluster.add_node()
            yield cluster
        finally:
            cluster.shutdown()

"""The cluster of the tests in this folder, which `make test-ray` runs."""

import tempfile
from collections.abc import Iterator

import pytest
from tests.pipeline.cluster.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A head and two nodes of one core; a test that loses a node adds one of its own."""
    # The paths of sockets must be short. By the environment: Ray's helper for tests writes the cluster's address
    # into Ray's default folder, whatever it is told, and fails where no Ray has made that.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        cluster = LocalCluster()
        try:
            cluster.add_node()
            cluster.add_node()
            yield cluster
        finally:
            cluster.shutdown()

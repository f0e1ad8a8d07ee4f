"""The batch most tests of this folder use."""

import pytest
from tests.stages.objective.batches import Batch, make_batch


@pytest.fixture
def batch() -> Batch:
    """Six tokens of a vocabulary of 40."""
    return make_batch(0)

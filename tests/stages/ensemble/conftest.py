"""Caches of two teachers, made once per file."""

import pytest
from tests.stages.ensemble.several import Caches, make_caches
from tests.world import World


@pytest.fixture(scope="module")
def caches(world: World, tmp_path_factory: pytest.TempPathFactory) -> Caches:
    return make_caches(world, tmp_path_factory.mktemp("several"))

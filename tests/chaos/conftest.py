"""A cluster of its own for tests that kill parts of it."""

from collections.abc import Iterator

import pytest

from tests.live import LiveCluster, serve


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    folder = tmp_path_factory.mktemp("chaos")
    flags = ("--served-model-name", "shoal-demo", "--tensor-parallel-size", "2", "--replicas", "1")
    with serve(folder, *flags) as live:
        yield live

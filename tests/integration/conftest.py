"""One real cluster for all tests of this folder: the demo model over two tensor-parallel shard
actors.
"""

from collections.abc import Iterator

import pytest
import pytest_asyncio

from tests.live import LiveCluster, serve

USAGE_LOG = "usage.jsonl"  # beside the launcher's own log
# The second name is the one on LangChain's page about vLLM: that code must run here as it stands.
SERVED_NAMES = ("shoal-demo", "mosaicml/mpt-7b")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    folder = tmp_path_factory.mktemp("serve")
    flags = ("--served-model-name", *SERVED_NAMES, "--tensor-parallel-size", "2")
    with serve(folder, *flags, "--usage-log", str(folder / USAGE_LOG)) as live:
        yield live


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: LangChain keeps its HTTP client, and so the loop, between tests."""
    for item in items:
        if pytest_asyncio.is_async_test(item) and "tests/integration" in item.nodeid:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)

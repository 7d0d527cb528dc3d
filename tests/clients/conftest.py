"""A real cluster for other people's clients, or a server that runs already: `--server URL`."""

from collections.abc import Iterator

import pytest

from tests.live import serve

MODEL = "shoal-demo"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", help="the URL of a running `shoal serve` of the demo model")


@pytest.fixture(scope="session")
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the OpenAI endpoint is, `/v1` included."""
    server = request.config.getoption("--server", default=None)
    if server is not None:
        yield f"{server}/v1"
        return
    with serve(tmp_path_factory.mktemp("serve"), "--served-model-name", MODEL) as live:
        yield live.api

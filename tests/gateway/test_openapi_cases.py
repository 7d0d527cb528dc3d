"""Cases that schemathesis makes from our own OpenAPI document: no failure of ours, no answer that
the document does not allow."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.types import Receive, Scope, Send

from gateway.app import create_app
from gateway.config import GatewayConfig
from tests.gateway.fake_router import FakeRouter, FakeView, says

NUM_CASES = 750  # of each of some fourteen operations


class WithoutLifespan:
    """The client would start and stop the application for each request, which stops only once."""

    def __init__(self) -> None:
        self.app = create_app(GatewayConfig(), FakeRouter(says("hello")), FakeView())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_answers_are_those_of_the_document() -> None:
    import schemathesis  # takes seconds: not while collecting
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    # The document tells types and ranges; that prompts must fit the model, ids its vocabulary and
    # fields each other, only the answers tell.
    beyond = [CHECKS.get_one("positive_data_acceptance")]
    schema = schemathesis.openapi.from_asgi("/openapi.json", WithoutLifespan())
    num_operations = 0
    for found in schema.get_all_operations():
        num_operations += 1
        _try_cases(found.ok(), beyond)
    assert num_operations >= 13


def _try_cases(operation: Any, excluded: list[Any]) -> None:
    @given(case=operation.as_strategy())
    @settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=list(HealthCheck))
    def each(case: Any) -> None:
        case.call_and_validate(excluded_checks=excluded)

    each()

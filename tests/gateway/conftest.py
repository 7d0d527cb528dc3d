"""An application in memory: real routes and texts, a scripted router behind."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from gateway.app import create_app
from gateway.config import GatewayConfig
from tests.gateway.fake_router import FakeRouter, FakeView


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def view() -> FakeView:
    return FakeView()


@pytest.fixture
async def app(router: FakeRouter, view: FakeView) -> AsyncIterator[FastAPI]:
    app = create_app(GatewayConfig(), router, view)
    yield app
    await app.state.gateway.grammars.close()  # its processes: no lifespan ends them here


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client

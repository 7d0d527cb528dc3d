"""The FastAPI application: routes, error objects, layers, and what starts and stops with it.

Knows the cluster only by the protocols of gateway/tokens.py; `python -m gateway` and tests hand in
what implements them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)

from fastapi import FastAPI

from gateway import exception_handlers, openapi
from gateway.auth import ApiKeys
from gateway.config import GatewayConfig
from gateway.drain import Drain
from gateway.metrics import GatewayMetrics
from gateway.middleware import AuthLayer, BodyLimitLayer, DrainLayer, RequestLayer
from gateway.routes import chat, completions, models, operation, tokenize
from gateway.state import GatewayState
from gateway.text.model_text import TextModels
from gateway.tokens import ClusterView, TokenRouter

Lifetime = Callable[[], AbstractAsyncContextManager[object]]


def create_app(
    config: GatewayConfig,
    router: TokenRouter,
    view: ClusterView,
    connected: Lifetime = nullcontext,
) -> FastAPI:
    """`connected` is entered before the first request and left after the last: the network side."""
    gateway = GatewayState(
        config=config,
        router=router,
        view=view,
        texts=TextModels(view, config.tokenizer_threads),
        metrics=GatewayMetrics(),
        drain=Drain(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(connected())
            stack.push_async_callback(gateway.texts.close)
            preload = asyncio.create_task(_keep_preloading(gateway))
            stack.push_async_callback(_cancelled, preload)
            yield

    app = FastAPI(
        title="Shoal",
        version=operation.shoal_version(),
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    for module in (chat, completions, models, tokenize, operation):
        app.include_router(module.router)
    exception_handlers.install(app)
    openapi.install(app)
    _add_layers(app, gateway)
    return app


def _add_layers(app: FastAPI, gateway: GatewayState) -> None:
    """The last added is the outermost."""
    app.add_middleware(BodyLimitLayer, max_bytes=gateway.config.max_body_bytes)
    app.add_middleware(AuthLayer, keys=ApiKeys(gateway.config.api_keys))
    app.add_middleware(DrainLayer, drain=gateway.drain)
    app.add_middleware(RequestLayer, metrics=gateway.metrics)


async def _keep_preloading(gateway: GatewayState) -> None:
    """So that a model's first request does not wait for its tokenizer."""
    while True:
        await gateway.texts.preload()
        await asyncio.sleep(gateway.config.preload_interval_s)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

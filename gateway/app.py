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
from starlette.middleware.cors import CORSMiddleware

from gateway import exception_handlers, openapi
from gateway.background import in_background
from gateway.body_limit import BodyLimitLayer
from gateway.config import GatewayConfig
from gateway.direct_routes import DirectLayer, direct_routes
from gateway.drain import Drain
from gateway.grammar_checker import GrammarChecker
from gateway.metrics import GatewayMetrics
from gateway.middleware import PROBE_PATHS, DrainLayer, RequestLayer, TenantLayer
from gateway.rate_limits import HEADER_NAMES
from gateway.routes import chat, completions, models, operation, tokenize
from gateway.state import GatewayState
from gateway.tenancy import Tenancy
from gateway.text.model_text import TextModels
from gateway.tokens import ClusterView, TokenRouter

# What a page's script may read besides the few headers it always may.
_EXPOSED_HEADERS = (
    *("x-request-id", "retry-after", "server-timing", "www-authenticate"),
    *(name.decode() for names in HEADER_NAMES.values() for name in names),
)
Lifetime = Callable[[], AbstractAsyncContextManager[object]]


def create_app(
    config: GatewayConfig,
    router: TokenRouter,
    view: ClusterView,
    connected: Lifetime = nullcontext,
) -> FastAPI:
    """`connected` is entered before the first request and left after the last: the network side."""
    metrics = GatewayMetrics()
    tenancy = Tenancy(config, metrics)
    gateway = GatewayState(
        config=config,
        router=router,
        view=view,
        texts=TextModels(view, config.tokenizer_threads, config.parsers),
        grammars=GrammarChecker(),
        metrics=metrics,
        drain=Drain(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(tenancy.running())
            await stack.enter_async_context(connected())
            stack.push_async_callback(gateway.texts.close)
            stack.push_async_callback(gateway.grammars.close)
            await stack.enter_async_context(in_background(_keep_preloading(gateway), "preload"))
            yield

    app = FastAPI(
        title="Shoal",
        version=operation.shoal_version(),
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.state.tenancy = tenancy
    for module in (chat, completions, models, tokenize, operation):
        app.include_router(module.router)
    exception_handlers.install(app)
    open_paths = PROBE_PATHS | {"/metrics"} if config.has_open_metrics else PROBE_PATHS
    openapi.install(app, open_paths)
    _add_layers(app, gateway, tenancy, open_paths)
    return app


def _add_layers(
    app: FastAPI, gateway: GatewayState, tenancy: Tenancy, open_paths: frozenset[str]
) -> None:
    """The last added is the outermost."""
    config = gateway.config
    app.add_middleware(DirectLayer, routes=direct_routes(chat.router, completions.router))
    app.add_middleware(
        BodyLimitLayer, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s
    )
    app.add_middleware(
        TenantLayer,
        keys=tenancy.keys,
        open_account=tenancy.open_account,
        open_paths=open_paths,
    )
    app.add_middleware(DrainLayer, drain=gateway.drain, limit=config.limit_concurrency)
    # Outside of the keys: a browser's preflight carries none, and refusals must be readable too.
    if config.cors.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors.allowed_origins,
            allow_methods=config.cors.allowed_methods,
            allow_headers=config.cors.allowed_headers,
            allow_credentials=config.cors.allow_credentials,
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(RequestLayer, metrics=gateway.metrics)


async def _keep_preloading(gateway: GatewayState) -> None:
    """So that a model's first request does not wait for its tokenizer; and what left the cluster
    leaves the metrics."""
    while True:
        replica_ids = gateway.view.replica_ids()
        if replica_ids is not None:
            gateway.metrics.follow(replica_ids)
        await gateway.texts.preload()
        await asyncio.sleep(gateway.config.preload_interval_s)

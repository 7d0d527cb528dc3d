"""What operators and probes ask: /livez /readyz /health /ping /version /load /metrics.

/health and /readyz tell what the cluster's step counters tell, not that this process answers;
that is /livez.
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gateway.errors import UnavailableError
from gateway.state import gateway_of

router = APIRouter(tags=["operation"])


@cache
def shoal_version() -> str:
    try:
        return version("shoal")
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"


@router.get("/livez", response_model=None)
@router.api_route("/ping", methods=["GET", "POST"], response_model=None, include_in_schema=False)
async def livez() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/health", response_model=None)
async def health(request: Request) -> Response:
    reason = gateway_of(request).view.unhealthy_reason()
    if reason is not None:
        raise UnavailableError(reason)
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> Response:
    """Healthy, not draining, and with something to serve."""
    gateway = gateway_of(request)
    if gateway.drain.is_draining:
        raise UnavailableError("The server is shutting down.")
    if not gateway.view.models():
        raise UnavailableError("No model is deployed yet.")
    return await health(request)


@router.get("/version", response_model=None)
async def get_version() -> Response:
    return JSONResponse({"version": shoal_version()})


@router.get("/load", response_model=None)
async def load(request: Request) -> Response:
    """As vLLM's: requests that this process is answering."""
    return JSONResponse({"server_load": gateway_of(request).drain.num_active})


@router.get("/metrics", response_model=None, response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The gateways' numbers, and behind them the engines' as the scheduler has them."""
    gateway = gateway_of(request)
    windows = {model.served_names[0]: model.max_model_len for model in gateway.view.models()}
    text = gateway.metrics.exposition(windows)
    if gateway.config.shows_engine_metrics:
        text += await gateway.view.engine_metrics()
    return Response(text, media_type=CONTENT_TYPE_LATEST)

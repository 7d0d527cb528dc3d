"""grpc.health.v1 with an answer computed at each question, from the engine's progress and not from
a flag.

A replica serves while its engine lives, takes work and is not stuck in a step. Any service name
this server has gets that answer.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from worker.engine.loop import EngineLoop

_Status = health_pb2.HealthCheckResponse

_WATCH_INTERVAL_S = 0.5


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Owned by the server's event loop."""

    def __init__(
        self, engine: EngineLoop, service_names: frozenset[str], hang_timeout_s: float
    ) -> None:
        self._engine = engine
        self._service_names = service_names | {""}
        self._hang_timeout_s = hang_timeout_s

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._service_names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._status())

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and at each change. An unknown service is reported, not refused."""
        told: int | None = None
        while True:
            is_known = request.service in self._service_names
            status = self._status() if is_known else _Status.SERVICE_UNKNOWN
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def _status(self) -> int:
        engine = self._engine
        is_serving = (
            engine.is_alive
            and not engine.is_draining
            and engine.step_age_s() < self._hang_timeout_s
        )
        return _Status.SERVING if is_serving else _Status.NOT_SERVING

"""`python -m gateway`: one gateway process in front of a cluster.

Several may share a port, with --reuse-port or with a listening socket inherited as --fd. API keys
come from SHOAL_API_KEY (comma separated) and --api-key.
"""

import argparse
import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import uvicorn
from prometheus_client import disable_created_metrics

from gateway.app import create_app
from gateway.cluster_view import LiveClusterView
from gateway.config import GatewayConfig
from gateway.router import Router
from gateway.scheduler_client import SchedulerClient
from gateway.server import GatewayServer
from gateway.worker_client import WorkerPool

logger = logging.getLogger("gateway")

_KEEP_ALIVE_S = (
    75  # longer than the idle time of the usual load balancers, so that they close first
)
_BACKLOG = 2048


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    defaults = GatewayConfig()
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("--scheduler", required=True, metavar="HOST:PORT")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--uds", help="listen on this Unix socket instead")
    parser.add_argument("--fd", type=int, help="listen on this inherited socket instead")
    parser.add_argument("--reuse-port", action="store_true", help="share the port with others")
    parser.add_argument("--gateway-id", default=f"gateway-{secrets.token_hex(4)}")
    parser.add_argument("--root-path", default="", help="prefix that a proxy in front strips")
    parser.add_argument("--api-key", action="append", default=[], help="may be repeated")
    parser.add_argument("--max-logprobs", type=int, default=defaults.max_logprobs)
    parser.add_argument("--default-max-tokens", type=int, help="of chats that name none")
    parser.add_argument("--max-body-bytes", type=int, default=defaults.max_body_bytes)
    parser.add_argument("--request-timeout", type=float, metavar="SECONDS")
    parser.add_argument(
        "--shutdown-timeout", type=float, default=defaults.shutdown_timeout_s, metavar="SECONDS"
    )
    parser.add_argument("--tokenizer-threads", type=int, default=defaults.tokenizer_threads)
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error", "critical"]
    )
    parser.add_argument("--access-log", action="store_true", help="a line for each request")
    return parser.parse_args(argv)


def config_from_args(args: argparse.Namespace, secret_keys: str = "") -> GatewayConfig:
    keys = [key.strip() for key in [*args.api_key, *secret_keys.split(",")]]
    return GatewayConfig(
        api_keys=tuple(dict.fromkeys(key for key in keys if key)),
        max_logprobs=args.max_logprobs,
        default_max_tokens=args.default_max_tokens,
        max_body_bytes=args.max_body_bytes,
        request_timeout_s=args.request_timeout,
        shutdown_timeout_s=args.shutdown_timeout,
        tokenizer_threads=args.tokenizer_threads,
    )


def listening_socket(args: argparse.Namespace) -> socket.socket | None:
    """None: uvicorn makes the Unix socket itself."""
    if args.fd is not None:
        return socket.socket(fileno=args.fd)
    if args.uds is not None:
        return None
    return socket.create_server(
        (args.host, args.port),
        family=socket.AF_INET6 if ":" in args.host else socket.AF_INET,
        backlog=_BACKLOG,
        reuse_port=args.reuse_port,
    )


async def serve(args: argparse.Namespace, config: GatewayConfig) -> None:
    scheduler = SchedulerClient(args.scheduler, args.gateway_id)
    view = LiveClusterView(scheduler)
    router = Router(scheduler, WorkerPool(args.gateway_id), view)

    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        await router.open()
        try:
            yield
        finally:
            await router.close()

    app = create_app(config, router, view, connected)
    listener = listening_socket(args)
    server = GatewayServer(
        uvicorn.Config(
            app,
            uds=args.uds,
            root_path=args.root_path.rstrip("/"),
            http="httptools",
            ws="none",
            lifespan="on",
            log_level=args.log_level,
            log_config=None,
            access_log=args.access_log,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=3,
        ),
        app.state.gateway.drain,
        config.shutdown_timeout_s,
    )
    where = args.uds if listener is None else listener.getsockname()
    logger.info("gateway_id=%s listening on %s", args.gateway_id, where)
    await server.serve(None if listener is None else [listener])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    disable_created_metrics()  # a second series for every one, which nobody reads
    config = config_from_args(args, os.environ.get("SHOAL_API_KEY", ""))
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(serve(args, config))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    import uvloop  # not on every platform; the loop is the only place that needs it

    return uvloop.new_event_loop()


if __name__ == "__main__":
    main()

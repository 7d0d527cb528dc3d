"""`python -m gateway`: one gateway process in front of a cluster.

Several may share a port, with --reuse-port or with a listening socket inherited as --fd. API keys
come from SHOAL_API_KEY (comma separated) and --api-key.
"""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import uvicorn
from prometheus_client import disable_created_metrics

from gateway.app import create_app
from gateway.cluster_view import LiveClusterView
from gateway.config import CorsConfig, GatewayConfig
from gateway.http_protocol import HeadLimits, guarded_protocol
from gateway.log_context import install as install_logging
from gateway.parsers.registry import ParserNames
from gateway.router import Router
from gateway.scheduler_client import SchedulerClient
from gateway.server import GatewayServer
from gateway.tenants import HASH_PREFIX, KeyFileError, key_digest
from gateway.tls import following, tls_files
from gateway.worker_client import WorkerPool
from protos.answer_parsers import AUTO, NO_REASONING, REASONING_PARSERS, TOOL_CALL_PARSERS
from protos.garbage import spare_garbage_collection

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
    _add_tenant_arguments(parser)
    _add_edge_arguments(parser)
    parser.add_argument("--max-logprobs", type=int, default=defaults.max_logprobs)
    parser.add_argument("--default-max-tokens", type=int, help="of chats that name none")
    parser.add_argument("--request-timeout", type=float, metavar="SECONDS")
    parser.add_argument(
        "--shutdown-timeout", type=float, default=defaults.shutdown_timeout_s, metavar="SECONDS"
    )
    parser.add_argument("--tool-call-parser", choices=(AUTO, *TOOL_CALL_PARSERS), default=AUTO)
    parser.add_argument(
        "--reasoning-parser", choices=(AUTO, NO_REASONING, *REASONING_PARSERS), default=AUTO
    )
    parser.add_argument("--tokenizer-threads", type=int, default=defaults.tokenizer_threads)
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error", "critical"]
    )
    parser.add_argument("--access-log", action="store_true", help="a line for each request")
    parser.add_argument(
        "--engine-metrics",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in /metrics too; once is enough where Prometheus reads several gateways",
    )
    args = parser.parse_args(argv)
    if (args.ssl_keyfile is None) != (args.ssl_certfile is None):
        parser.error("--ssl-keyfile and --ssl-certfile need each other")
    return args


def _add_tenant_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("tenants").add_argument
    add("--api-key", action="append", default=[], help="or its sha256:...; may be repeated")
    add("--api-keys-file", type=Path, metavar="FILE", help="keys with limits; YAML, JSON, TOML")
    add("--usage-log", type=Path, metavar="FILE", help="a JSON line for each request")
    add("--open-metrics", action="store_true", help="/metrics asks for no key")
    add("--shared-folder", type=Path, metavar="DIR", help="of all gateways of this machine")


def _add_edge_arguments(parser: argparse.ArgumentParser) -> None:
    defaults, cors = GatewayConfig(), CorsConfig()
    add = parser.add_argument_group("HTTP").add_argument
    add("--max-body-bytes", type=int, default=defaults.max_body_bytes)
    add("--max-header-bytes", type=int, default=HeadLimits().max_bytes)
    add("--limit-concurrency", type=int, metavar="N", help="requests at once in this process")
    add("--allowed-origins", type=_texts, default=cors.allowed_origins, metavar="JSON")
    add("--allowed-methods", type=_texts, default=cors.allowed_methods, metavar="JSON")
    add("--allowed-headers", type=_texts, default=cors.allowed_headers, metavar="JSON")
    add("--allow-credentials", action="store_true")
    add("--ssl-keyfile", metavar="FILE")
    add("--ssl-certfile", metavar="FILE")
    add("--ssl-ca-certs", metavar="FILE")
    add("--ssl-cert-reqs", type=int, choices=list(ssl.VerifyMode), default=ssl.CERT_NONE)


def _texts(text: str) -> tuple[str, ...]:
    try:
        return tuple(msgspec.json.decode(text, type=list[str]))
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON list of strings") from error


def config_from_args(
    args: argparse.Namespace, secret_keys: str = "", probe_key: str = ""
) -> GatewayConfig:
    """Keys go in as hashes. Raises: ValueError for a hash that is none."""
    keys = [key.strip() for key in [*args.api_key, *secret_keys.split(",")]]
    digests = dict.fromkeys(key_digest(key).hex() for key in keys if key)
    return GatewayConfig(
        api_keys=tuple(HASH_PREFIX + digest for digest in digests),
        probe_key=HASH_PREFIX + key_digest(probe_key).hex() if probe_key else "",
        api_keys_file=args.api_keys_file,
        shared_folder=args.shared_folder,
        usage_log=args.usage_log,
        has_open_metrics=args.open_metrics,
        shows_engine_metrics=args.engine_metrics,
        cors=CorsConfig(
            args.allowed_origins,
            args.allowed_methods,
            args.allowed_headers,
            args.allow_credentials,
        ),
        limit_concurrency=args.limit_concurrency,
        max_logprobs=args.max_logprobs,
        default_max_tokens=args.default_max_tokens,
        max_body_bytes=args.max_body_bytes,
        request_timeout_s=args.request_timeout,
        shutdown_timeout_s=args.shutdown_timeout,
        tokenizer_threads=args.tokenizer_threads,
        parsers=ParserNames(args.tool_call_parser, args.reasoning_parser),
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
    tls = tls_files(args)
    server = GatewayServer(
        uvicorn.Config(
            app,
            uds=args.uds,
            root_path=args.root_path.rstrip("/"),
            http=guarded_protocol(HeadLimits(args.max_header_bytes)),
            ws="none",
            lifespan="on",
            log_level=args.log_level,
            log_config=None,
            access_log=args.access_log,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=3,
            **({} if tls is None else tls.uvicorn_settings()),
        ),
        app.state.gateway.drain,
        config.shutdown_timeout_s,
    )
    where = args.uds if listener is None else listener.getsockname()
    logger.info("gateway_id=%s listening on %s", args.gateway_id, where)
    if hasattr(signal, "SIGHUP"):  # log rotation sends it; by itself it would end the process
        reload = app.state.tenancy.keys.request_reload
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    async with following(tls, server.config, config.keys_check_interval_s):
        await server.serve(None if listener is None else [listener])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    install_logging(args.log_level)
    disable_created_metrics()  # a second series for every one, which nobody reads
    try:
        # Taken out: what a process has in its environment, its children and /proc have too.
        keys = (os.environ.pop(name, "") for name in ("SHOAL_API_KEY", "SHOAL_PROBE_KEY"))
        config = config_from_args(args, *keys)
        spare_garbage_collection()
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            runner.run(serve(args, config))
    except (KeyFileError, ssl.SSLError) as error:
        raise SystemExit(f"gateway: {error}") from error


def _new_event_loop() -> asyncio.AbstractEventLoop:
    import uvloop  # not on every platform; the loop is the only place that needs it

    return uvloop.new_event_loop()


if __name__ == "__main__":
    main()

"""The flags of `shoal serve` for its tenants and the edge of its HTTP port: vLLM's spellings where
it has the flag. `cluster.cli` adds them beside those of `cluster.arguments`."""

import argparse
import json
import ssl

from cluster.arguments import positive_int
from cluster.edge_options import EdgeOptions
from protos.answer_parsers import AUTO, NO_REASONING, REASONING_PARSERS, TOOL_CALL_PARSERS


def add_edge_arguments(parser: argparse.ArgumentParser) -> None:
    _add_tenant_arguments(parser)
    _add_limit_arguments(parser)
    _add_browser_arguments(parser)
    _add_tls_arguments(parser)
    _add_answer_arguments(parser)


def edge_options(args: argparse.Namespace) -> EdgeOptions:
    """Raises: ValueError when flags contradict each other."""
    if (args.ssl_keyfile is None) != (args.ssl_certfile is None):
        raise ValueError("--ssl-keyfile and --ssl-certfile need each other")
    if args.ssl_cert_reqs and args.ssl_ca_certs is None:
        raise ValueError("--ssl-cert-reqs needs --ssl-ca-certs: whose client certificates count")
    return EdgeOptions(
        api_keys_file=args.api_keys_file,
        usage_log=args.usage_log,
        open_metrics=args.open_metrics,
        max_body_bytes=args.max_body_bytes,
        max_header_bytes=args.max_header_bytes,
        limit_concurrency=args.limit_concurrency,
        request_timeout_s=args.request_timeout,
        allowed_origins=_flat(args.allowed_origins),
        allowed_methods=_flat(args.allowed_methods),
        allowed_headers=_flat(args.allowed_headers),
        allow_credentials=args.allow_credentials,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
    )


def _add_tenant_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("tenants").add_argument
    add(
        "--api-keys-file",
        metavar="FILE",
        help="keys with names and limits; .yaml, .json or .toml, read again when it changes",
    )
    add("--usage-log", metavar="FILE", help="a JSON line for each request: who used how much")
    add("--open-metrics", action="store_true", help="/metrics asks for no key")


def _add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("request limits").add_argument
    add(
        "--max-body-bytes",
        type=positive_int,
        metavar="N",
        help="of a request (default: 32 MiB); 64M",
    )
    add(
        "--max-header-bytes",
        "--h11-max-incomplete-event-size",
        dest="max_header_bytes",
        type=positive_int,
        metavar="N",
        help="of all of a request's headers (default: 64 KiB)",
    )
    add(
        "--limit-concurrency",
        type=positive_int,
        metavar="N",
        help="requests that a gateway process answers at once (default: no limit)",
    )
    add(
        "--request-timeout",
        type=_positive_seconds,
        metavar="S",
        help="seconds from a request to its last token; a request's `timeout` may be shorter",
    )


def _add_browser_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("web pages of other origins (CORS)").add_argument
    for name, what in (
        ("origins", "that may call"),
        ("methods", "they may use"),
        ("headers", "they may send"),
    ):
        add(
            f"--allowed-{name}",
            nargs="+",
            type=_texts,
            default=[("*",)],
            metavar="NAME",
            help=f"{what} (default: all); also as a JSON list",
        )
    add("--allow-credentials", action="store_true", help="let pages send cookies")


def _add_tls_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("TLS").add_argument
    add("--ssl-keyfile", metavar="FILE", help="the certificate's private key")
    add("--ssl-certfile", metavar="FILE", help="read again when it changes")
    add("--ssl-ca-certs", metavar="FILE", help="who signs clients' certificates")
    add(
        "--ssl-cert-reqs",
        type=int,
        choices=[int(mode) for mode in ssl.VerifyMode],
        default=int(ssl.CERT_NONE),
        help="client certificates: 0 none, 1 optional, 2 required (default: %(default)s)",
    )


def _add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("answers").add_argument
    add(
        "--tool-call-parser",
        choices=(AUTO, *TOOL_CALL_PARSERS),
        default=AUTO,
        metavar="NAME",
        help="how the model writes tool calls (default: told by its chat template); "
        + ", ".join(TOOL_CALL_PARSERS),
    )
    add(
        "--reasoning-parser",
        choices=(AUTO, NO_REASONING, *REASONING_PARSERS),
        default=AUTO,
        metavar="NAME",
        help="how it marks its thoughts (default: told by its chat template); none, "
        + ", ".join(REASONING_PARSERS),
    )
    add("--enable-auto-tool-choice", action="store_true", help="always on; taken for vLLM's sake")


def _texts(text: str) -> tuple[str, ...]:
    """A JSON list, as vLLM wants it, or one word."""
    if not text.startswith("["):
        return (text,)
    try:
        values = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON list: {e}") from e
    if not all(isinstance(value, str) for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of strings")
    return tuple(values)


def _flat(given: list[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(text for texts in given for text in texts)


def _positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value

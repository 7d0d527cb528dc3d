"""The `shoal` command: `serve`, `status`, `down`, `keys`, `version`.

Only argparse at import, so that help and mistakes answer at once; each command imports what it
needs.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.arguments import add_serve_arguments, config_arguments, dashed, seconds
from cluster.cli_errors import CommandError
from cluster.edge_arguments import add_edge_arguments
from cluster.options import serve_options

SERVE_EPILOG = (
    "Flags are spelt as vLLM spells them where it has them. Without MODEL, a small translator that "
    "comes with Shoal is served as shoal-demo, on two tensor-parallel shards."
)


def build_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The whole parser, and the one of `serve` inside it."""
    parser = argparse.ArgumentParser(
        prog="shoal",
        description="Serves large language models from a cluster behind one OpenAI endpoint.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="start a cluster (or join one) and serve a model",
        epilog=SERVE_EPILOG,
        allow_abbrev=False,
    )
    add_serve_arguments(serve)
    add_edge_arguments(serve)
    _add_status(commands.add_parser("status", help="replicas, blocks and requests of a cluster"))
    _add_down(commands.add_parser("down", help="remove the deployment of a Ray cluster"))
    _add_keys(commands.add_parser("keys", help="API keys for --api-keys-file"))
    commands.add_parser("version", help="print the version")
    return parser, serve


def _add_status(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument("--json", action="store_true", help="everything, for programs")


def _add_down(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument(
        "--shutdown-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds running requests may take (default: %(default)g)",
    )


def _add_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    hashing = actions.add_parser("hash", help="print what stands in the file for a key")
    hashing.add_argument("key", nargs="?", metavar="KEY", help="(default: read it, unseen by `ps`)")
    actions.add_parser("new", help="print a new key and its hash")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        default="auto",
        metavar="HOST:PORT",
        help="of the Ray cluster (default: the one on this machine)",
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: SystemExit with a message about the flag at fault, as argparse does."""
    parser, serve = build_parser()
    args = parser.parse_args(dashed(argv))
    if args.command == "serve" and args.config is not None:
        try:
            given = config_arguments(Path(args.config))
        except ValueError as e:
            serve.error(str(e))
        # As defaults, the file's flags lose against those of the command line.
        serve.set_defaults(**vars(serve.parse_args(given)))
        args = parser.parse_args(dashed(argv))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except CommandError as e:
        print(f"shoal: error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.command == "serve":
        return _serve(args)
    if args.command == "status":
        from cluster.status import show_status

        return show_status(args.address, args.json)
    if args.command == "down":
        from cluster.down import down

        return down(args.address, args.shutdown_timeout)
    if args.command == "keys":
        from cluster.keys import hash_key, new_key

        return new_key() if args.action == "new" else hash_key(args.key)
    print(f"shoal {version()}")
    return 0


def _serve(args: argparse.Namespace) -> int:
    try:
        options = serve_options(args, os.environ)
    except ValueError as e:
        raise CommandError(str(e)) from e
    from cluster.serve import serve

    return serve(options, seconds_before=_age_s())


def _age_s() -> float:
    """Of this process: what the interpreter took to get here belongs to the start-up time."""
    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("shoal")
    except PackageNotFoundError:
        return "0+unknown"


if __name__ == "__main__":
    sys.exit(main())

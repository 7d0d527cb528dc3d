"""Ports of this machine: is one free, and which to take when any will do. For `cluster.serve`."""

import random
import socket

from cluster.cli_errors import CommandError

# Below the kernel's ephemeral range (32768 and up on Linux): between choosing the port and
# listening on it, Ray opens dozens of ephemeral ports, and one of them could be ours.
CHOICES = range(20_000, 30_000)
TRIES = 100


def free_port(host: str = "") -> int:
    """A port nobody listens on now."""
    for port in random.sample(CHOICES, TRIES):
        if _refusal(host, port) is None:
            return port
    raise CommandError(f"no free port found between {CHOICES.start} and {CHOICES.stop}")


def check_port(host: str, port: int, flag: str) -> None:
    """Raises: CommandError, naming the flag, when the address cannot be listened on."""
    refusal = _refusal(host, port)
    if refusal is not None:
        where = f"{host or '*'}:{port}"
        raise CommandError(f"cannot listen on {where} ({refusal}); choose another {flag}")


def _refusal(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except (OSError, UnicodeError) as e:
            return getattr(e, "strerror", None) or str(e)
    return None

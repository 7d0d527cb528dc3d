"""Which Ray cluster "auto" means, and whether anything listens where a cluster should be.

A `shoal serve` that starts Ray notes its address in a file, so that `shoal status` finds that cluster
and not just any Ray on the machine. Asked by `cluster.ray_session`.
"""

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.cli_errors import CommandError

CONNECT_TIMEOUT_S = 5.0
NOBODY = "there is no Ray cluster on this machine; is `shoal serve` running?"


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}"


class LocalClusters:
    """The clusters that `shoal serve` processes of this user started: a file each, named for the
    process. A file whose process is gone means nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()

    def note(self, address: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        started = _start_time(os.getpid())
        self._file(os.getpid()).write_text(json.dumps({"address": address, "started": started}))

    def forget(self) -> None:
        self._file(os.getpid()).unlink(missing_ok=True)

    def newest(self) -> str | None:
        """The address of the one that was started last."""
        return max(self._living(), default=(0.0, None))[1]

    def _living(self) -> Iterator[tuple[float, str]]:
        for file in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                note = json.loads(file.read_text())
                # Process ids are used again: the same one, started at another time, is another one.
                if _start_time(int(file.stem)) == note["started"]:
                    yield note["started"], str(note["address"])

    def _file(self, pid: int) -> Path:
        return self._folder / f"{pid}.json"


def _start_time(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def resolve(address: str, env: Mapping[str, str], clusters: LocalClusters) -> str:
    """What to give to `ray.init`; "auto" becomes an address where one is known.

    Raises: CommandError when nothing listens there: Ray itself would go on trying for minutes.
    """
    is_auto = address == "auto"
    if is_auto:
        address = env.get("RAY_ADDRESS") or clusters.newest() or _discover()
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address and not _listens(host.strip("[]"), port):
        where = NOBODY if is_auto else f"no Ray cluster answers at {address}"
        raise CommandError(where)
    return address


def _discover() -> str:
    """By Ray's own means, which look at running processes. An internal of Ray: where it has changed,
    "auto" is left to `ray.init`.
    """
    try:
        from ray._private.services import get_ray_address_from_environment
    except ImportError:
        return "auto"
    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError as e:
        raise CommandError(NOBODY) from e


def _listens(host: str, port: str) -> bool:
    try:
        with socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False

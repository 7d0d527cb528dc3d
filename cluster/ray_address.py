"""Which Ray cluster "auto" means, and whether anything listens where a cluster should be.

A `shoal serve` that starts Ray notes its address in a file, so that `shoal status` finds that
cluster and not just any Ray on the machine. Asked by `cluster.ray_session`.
"""

import json
import os
import socket
import tempfile
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.cli_errors import CommandError

CONNECT_TIMEOUT_S = 5.0
NOBODY = "there is no Ray cluster on this machine; is `shoal serve` running?"


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}"


@dataclass(frozen=True, order=True, slots=True)
class Note:
    """What is known of a cluster that a `shoal serve` started."""

    started: float  # the process, Unix time
    address: str
    auth_mode: str | None  # Ray's: a cluster started by `ray.init` asks for the user's token


class LocalClusters:
    """The clusters that `shoal serve` processes of this user started: a file each, named for the
    process. A file whose process is gone means nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()

    def note(self, address: str, auth_mode: str | None) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self._folder.glob("*.json"):
            if _read(file) is None:
                file.unlink(missing_ok=True)
        note = Note(_start_time(os.getpid()) or 0.0, address, auth_mode)
        self._file(os.getpid()).write_text(json.dumps(asdict(note)))

    def forget(self) -> None:
        self._file(os.getpid()).unlink(missing_ok=True)

    def find(self, address: str) -> Note | None:
        """The one at `address`; with "auto" the one that was started last."""
        notes = [note for note in self._living() if address in ("auto", note.address)]
        return max(notes, default=None)

    def _living(self) -> Iterator[Note]:
        # In a folder that everybody may write to, another user may have been here first.
        if not self._folder.is_dir() or self._folder.stat().st_uid != os.getuid():
            return
        for file in self._folder.glob("*.json"):
            if (note := _read(file)) is not None:
                yield note

    def _file(self, pid: int) -> Path:
        return self._folder / f"{pid}.json"


def _read(file: Path) -> Note | None:
    """None: it means nothing, or not any more."""
    try:
        note = Note(**json.loads(file.read_text()))
        # Process ids are used again: the same one, started at another time, is another one.
        return note if _start_time(int(file.stem)) == note.started else None
    except (OSError, ValueError, TypeError):
        return None


def _start_time(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def resolve(address: str, env: MutableMapping[str, str], clusters: LocalClusters) -> str:
    """What to give to `ray.init`. Sets in `env` what Ray needs to get in, before Ray is imported.

    Raises: CommandError when nothing listens there: Ray itself would go on trying for minutes.
    """
    is_auto = address == "auto"
    if is_auto and env.get("RAY_ADDRESS"):
        address = env["RAY_ADDRESS"]
    note = clusters.find(address)
    if note is not None:
        address = note.address
        if note.auth_mode is not None:
            env.setdefault("RAY_AUTH_MODE", note.auth_mode)
    where = _discover() if address == "auto" else address
    host, colon, port = where.rpartition(":")
    if colon and "://" not in where and not _listens(host.strip("[]"), port):
        raise CommandError(NOBODY if is_auto else f"no Ray cluster answers at {where}")
    return address


def _discover() -> str:
    """By Ray's own means, which look at running processes. An internal of Ray: where it has
    changed, "auto" is left to `ray.init`.
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

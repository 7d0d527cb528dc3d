"""Counters of tenants that all gateway processes of one machine add to and read.

A folder with one small mapped file a tenant. Every process writes only its own row of each file and
reads all of them, so nothing is locked; who reads while another writes may see the last microsecond
missing. Without a folder the counters are this process's own. gateway/rate_limits.py uses them.
"""

import fcntl
import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

MAX_PROCESSES = 64
NUM_COLUMNS = 8
_ROW_BYTES = (
    8 * NUM_COLUMNS
)  # of doubles: a cache line, so that processes do not disturb each other


class CounterTable:
    """One tenant's counters: `own` may be written, columns are everybody's."""

    __slots__ = ("_cells", "own")

    def __init__(self, memory: mmap.mmap, own_row: int) -> None:
        self._cells = memoryview(memory).cast("d")
        self.own = self._cells[own_row * NUM_COLUMNS : (own_row + 1) * NUM_COLUMNS]

    def column(self, column: int) -> Sequence[float]:
        """Of every row, in one go: a loop over rows in Python would cost ten times as much."""
        return self._cells[column::NUM_COLUMNS].tolist()


class SharedCounters:
    """The tables of a folder, or of this process alone. Owned by the event loop.

    Invariant: no other living process has the same row. A row that a dead process leaves is the
    next one's, who opens its tables and so clears what the dead had running.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Raises: OSError when the folder cannot be used."""
        self._folder = folder
        self._lock_fd = -1
        self._row = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._row = self._claim_row(folder)

    def close(self) -> None:
        """Gives the row back."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def table(self, tenant: str) -> CounterTable:
        if self._folder is None:
            return CounterTable(mmap.mmap(-1, _ROW_BYTES), 0)
        name = hashlib.sha256(tenant.encode()).hexdigest()[:32]
        fd = os.open(self._folder / f"{name}.counters", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, MAX_PROCESSES * _ROW_BYTES)
            return CounterTable(mmap.mmap(fd, MAX_PROCESSES * _ROW_BYTES), self._row)
        finally:
            os.close(fd)

    def _claim_row(self, folder: Path) -> int:
        """The system gives a lock back when its process ends, however it ends."""
        self._lock_fd = os.open(folder / "rows.lock", os.O_RDWR | os.O_CREAT, 0o600)
        for row in range(MAX_PROCESSES):
            try:
                fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
            except OSError:
                continue
            self._clear_running(folder, row)
            return row
        raise OSError(f"more than {MAX_PROCESSES} gateways share {folder}")

    @staticmethod
    def _clear_running(folder: Path, row: int) -> None:
        for path in folder.glob("*.counters"):
            with path.open("r+b") as file:
                file.seek(row * _ROW_BYTES + 8 * RUNNING)
                file.write(bytes(8))


# Columns: a window's start (in windows since the clock's zero), what was counted in it and in the
# one before it, for requests and for tokens; and the requests running now.
REQUESTS = 0
TOKENS = 3
RUNNING = 6

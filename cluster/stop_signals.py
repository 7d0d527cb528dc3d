"""SIGINT, SIGTERM and SIGHUP of the launcher: the first asks for an orderly end, the second for an
immediate one, a third has its default effect.

Used by `cluster.serve` only, on the main thread.
"""

import os
import select
import signal
from types import FrameType

from cluster.cli_errors import ImmediateStop, StopRequested

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Lives on the main thread. `wait` returns early when a signal arrives: the handler writes to a
    pipe, since an Event's lock may be held by the very thread that the handler interrupts.
    """

    def __init__(self) -> None:
        self.requested = False
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)

    def install(self) -> None:
        """May be called again: Ray installs a SIGTERM handler of its own when it starts."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def restore(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def close(self) -> None:
        self.restore()
        os.close(self._read_fd)
        os.close(self._write_fd)

    def wait(self, timeout_s: float) -> bool:
        """Whether an end was asked for, at the latest after `timeout_s`."""
        if not self.requested:
            select.select([self._read_fd], [], [], timeout_s)
        return self.requested

    def check(self) -> None:
        """Raises: StopRequested once an end was asked for."""
        if self.requested:
            raise StopRequested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self.restore()
            raise ImmediateStop
        self.requested = True
        os.write(self._write_fd, b"x")

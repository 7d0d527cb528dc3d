"""What the terminal shows while a cluster starts and stops: one line a phase, with its seconds.

Plain lines by default, colour and a spinner on a terminal. Knows nothing of what the phases do.
"""

import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

Clock = Callable[[], float]

BAR_WIDTH = 20
PROGRESS_LINE_S = 5.0  # without a terminal, what lasts says so this often


class Display:
    """Lines for people; used from the main thread. `started_at` is on the clock's own scale."""

    def __init__(
        self,
        out: IO[str] | None = None,
        err: IO[str] | None = None,
        clock: Clock = time.monotonic,
        started_at: float | None = None,
    ) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._clock = clock
        self._started_at = clock() if started_at is None else started_at
        self._console = _console(self._out)
        self._status: Status | None = None
        self._last_line_s = self._started_at

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started_at

    def working(self, text: str) -> None:
        """What is being waited for; shown on a terminal only, until the next line."""
        if self._console is None:
            return
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        self._status.update(text)

    def progress(self, name: str, detail: str, fraction: float) -> None:
        """A phase lasts: a bar on a terminal, elsewhere a line every few seconds."""
        if self._console is not None:
            filled = round(BAR_WIDTH * fraction)
            bar = "█" * filled + "░" * (BAR_WIDTH - filled)
            self.working(f"{name} {bar} {fraction:4.0%}  {detail}")
        elif self._clock() - self._last_line_s >= PROGRESS_LINE_S:
            self._print(f"[{self.elapsed_s:6.2f} s] {name:<18} {fraction:>8.0%}  {detail}")

    def phase(self, name: str, detail: str = "", seconds: float | None = None) -> None:
        """A phase has ended, `seconds` after it began."""
        took = "" if seconds is None else f"{seconds:6.2f} s"
        text = f"{name:<18} {took:>8}  {detail}".rstrip()
        if self._console is None:
            self._print(f"[{self.elapsed_s:6.2f} s] {text}")
        else:
            self._console.print(
                f"[green]✓[/green] [dim]{self.elapsed_s:6.2f} s[/dim]  {_escape(text)}",
                highlight=False,
                soft_wrap=True,
            )

    def text(self, text: str) -> None:
        """Lines as they are, ready to be copied."""
        if self._console is None:
            self._print(text)
        else:
            self._console.print(_escape(text), highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self._complain("warning", text)

    def fail(self, text: str) -> None:
        self._complain("error", text)

    def close(self) -> None:
        """Takes the spinner away; lines may still follow."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _complain(self, kind: str, text: str) -> None:
        # The spinner owns the terminal's last line: without stopping it, both would share it.
        self.close()
        self._err.write(f"shoal: {kind}: {text}\n")
        self._err.flush()

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._last_line_s = self._clock()
        self._out.flush()  # into a file or a pipe, lines would wait for a full buffer


def _console(out: IO[str]) -> "Console | None":
    if not out.isatty():
        return None
    from rich.console import Console

    return Console(file=out)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def human_bytes(num_bytes: int) -> str:
    """1536 -> "1.5 KiB": at most one decimal, binary units."""
    value, units = float(num_bytes), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {units[-1]}"

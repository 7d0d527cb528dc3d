"""Ways to be stopped that are rougher than Ctrl-C: nothing may hang, nothing may stay behind."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.live import serve

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

ENDED_WITHIN_S = 30.0


def test_sigterm_to_the_whole_group_ends_everything_soon(tmp_path: Path) -> None:
    """As systemd and some container runtimes do: Ray dies under the launcher's hands."""
    with serve(tmp_path, "--tensor-parallel-size", "1") as live:
        family = psutil.Process(live.process.pid).children(recursive=True)
        started = time.monotonic()
        os.killpg(live.process.pid, signal.SIGTERM)
        live.process.wait(60)
        seconds = time.monotonic() - started
        _, alive = psutil.wait_procs(family, timeout=5)
    print(f"ended after {seconds:.1f} s")
    assert [p for p in alive if p.is_running()] == []
    assert seconds < ENDED_WITHIN_S

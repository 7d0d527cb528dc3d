"""The main thread of a Ray actor's process, whose ticks an engine's steps must not wait for.

It looks for signals a hundred times a second (Ray has no setting for it), each time in the way of a
thread that computes: of what woke beside steps on two cores a quarter were the two actors' main
threads. Called by the actors themselves.
"""

import contextlib
import os
import sys
import threading

_NICENESS = 19  # it runs where a core is free, and seldom where none is


def yield_main_thread() -> None:
    """Lowers that thread's priority alone, for ever; Linux only. To be called in another one, once
    the process has its threads: those that the main thread starts later inherit it, as the one
    does by which Ray takes in the ClusterScheduler's calls.
    """
    if sys.platform != "linux" or threading.current_thread() is threading.main_thread():
        return
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, os.getpid(), _NICENESS)  # of threads, on Linux

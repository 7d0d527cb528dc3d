"""Real rank processes for tests: each runs a function, reports through a queue, is ended for sure.

Forked from a server that has torch loaded, so that a rank starts in milliseconds.
"""

import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

_ANSWER_TIMEOUT_S = 60.0


class Ranks:
    """Processes of ranks `first` .. `size - 1`, each running `work(rank, *args, report)`."""

    def __init__(self, work: Callable[..., None], first: int, size: int, args: tuple) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["torch", "worker.parallel.rendezvous"])
        self._reports = {rank: context.Queue() for rank in range(first, size)}
        self.processes: dict[int, BaseProcess] = {
            rank: context.Process(target=work, args=(rank, *args, queue), daemon=True)
            for rank, queue in self._reports.items()
        }
        for process in self.processes.values():
            process.start()

    def report(self, rank: int) -> Any:
        return self._reports[rank].get(timeout=_ANSWER_TIMEOUT_S)

    def kill(self, rank: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        for process in self.processes.values():
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join(timeout=5)


@contextmanager
def ranks(work: Callable[..., None], first: int, size: int, *args: object) -> Iterator[Ranks]:
    started = Ranks(work, first, size, args)
    try:
        yield started
    finally:
        started.end()

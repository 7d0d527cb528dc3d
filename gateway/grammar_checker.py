"""Tries grammars in processes of its own, so that none can stall or kill the gateway or an engine.

A grammar is tried once: what came of it, a hang included, is remembered by its hash. Owned by the
gateway's event loop; routes ask it between planning and generation.
"""

import asyncio
import json
import logging
import os
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b

from gateway.errors import InvalidRequestError, OverloadedError, UnavailableError
from gateway.tokens import Grammar
from protos.grammar_source import cpu_seconds

logger = logging.getLogger(__name__)

_NUM_PROCESSES = 2
_NUM_STARTS = 3  # of a process, before it is given up
_START_TIMEOUT_S = 20.0
_TRIAL_TIMEOUT_S = 5.0
_QUEUE_TIMEOUT_S = 15.0
_RETRY_AFTER_S = 1.0
_PATIENCE = 6  # times the timeout, where others keep the process from computing
_MAX_REMEMBERED = 4096
_MAX_QUOTED_CHARS = 300


class GrammarChecker:
    """Invariant: at most `num_processes` processes, each with one grammar at a time."""

    def __init__(
        self, num_processes: int = _NUM_PROCESSES, trial_timeout_s: float = _TRIAL_TIMEOUT_S
    ) -> None:
        self._problems: OrderedDict[bytes, str] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[str]] = {}
        self._free = asyncio.Semaphore(num_processes)
        self._idle: list[_TrialProcess] = []
        self._trial_timeout_s = trial_timeout_s

    async def check(self, grammar: Grammar) -> None:
        """Raises: InvalidRequestError naming the field, OverloadedError when too many are tried,
        UnavailableError when none can be."""
        for part in (*grammar.parts, grammar):
            tried = part if part.trial is None else replace(part, text=part.trial, trial=None)
            problem = await self._problem(tried) if tried.text else ""
            if problem:
                raise _refused(problem, part.param)

    async def close(self) -> None:
        """Nothing may be asked afterwards."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(process.kill() for process in self._idle))
        self._idle.clear()

    async def _problem(self, grammar: Grammar) -> str:
        key = _key(grammar)
        known = self._problems.get(key)
        if known is not None:
            self._problems.move_to_end(key)
            return known
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._try(key, grammar))
            self._running[key] = task
            task.add_done_callback(lambda done: self._end_trial(key, done))
        # Others may wait for the same trial: a client that leaves does not end it.
        return await asyncio.shield(task)

    def _end_trial(self, key: bytes, task: "asyncio.Task[str]") -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen here, should every waiter have gone

    async def _try(self, key: bytes, grammar: Grammar) -> str:
        try:
            async with asyncio.timeout(_QUEUE_TIMEOUT_S):
                await self._free.acquire()
        except TimeoutError:
            message = "Too many new grammars are being compiled; retry later."
            raise OverloadedError(message, retry_after_s=_QUEUE_TIMEOUT_S) from None
        try:
            problem = await self._tried(grammar)
        finally:
            self._free.release()
        self._problems[key] = problem
        if len(self._problems) > _MAX_REMEMBERED:
            self._problems.popitem(last=False)
        return problem

    async def _living_process(self) -> "_TrialProcess":
        """Raises: UnavailableError. No grammar is blamed for a process that had died before it, or
        that never came to be."""
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            await process.kill()
        return await self._new_process()

    async def _new_process(self) -> "_TrialProcess":
        """Raises: UnavailableError."""
        for _ in range(_NUM_STARTS):
            process = _TrialProcess()
            try:
                await process.start()
                return process
            except (TimeoutError, EOFError, OSError) as error:
                await process.kill()
                logger.error("no process to try grammars in: %r", error)
            except BaseException:  # cancelled at shutdown
                await process.kill()
                raise
        message = "The server cannot check grammars now."
        raise UnavailableError(message, retry_after_s=_RETRY_AFTER_S)

    async def _tried(self, grammar: Grammar) -> str:
        process = await self._living_process()
        try:
            return await self._tried_in(process, grammar)
        except (EOFError, OSError):
            # It may have been dying before: only a process that was just started tells.
            logger.warning("a process to try grammars in has died, another tries")
        process = await self._new_process()
        try:
            return await self._tried_in(process, grammar)
        except (EOFError, OSError):
            logger.warning("a grammar ended the process it was tried in")
            return "it takes too much memory to compile and to follow"

    async def _tried_in(self, process: "_TrialProcess", grammar: Grammar) -> str:
        """Raises: EOFError or OSError when the process died."""
        try:
            problem = await process.try_grammar(grammar, self._trial_timeout_s)
        except TimeoutError:
            await process.kill()
            logger.warning("a grammar took too long to try, its process is killed")
            return f"it takes more than {self._trial_timeout_s:g} s to compile and to follow"
        except BaseException:  # it died, or we are cancelled: nobody else knows this process
            await process.kill()
            raise
        self._idle.append(process)
        return problem


class _TrialProcess:
    """Runs from `start` to `kill`."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Raises: TimeoutError, EOFError or OSError when there can be no process now."""
        self._process = await _started()
        await self._answer(b'{"kind": "regex", "text": "a"}\n', _START_TIMEOUT_S)

    async def try_grammar(self, grammar: Grammar, timeout_s: float) -> str:
        """`timeout_s`: of computing. Raises: TimeoutError; EOFError or OSError if it died of it."""
        line = json.dumps({"kind": grammar.kind, "text": grammar.text}).encode() + b"\n"
        answer = await self._answer(line, timeout_s)
        return str(json.loads(answer)["problem"])

    async def _answer(self, line: bytes, timeout_s: float) -> bytes:
        assert self._process is not None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        if stdin.is_closing():  # uvloop raises a bare RuntimeError
            raise EOFError
        since_s = cpu_seconds(self._process.pid) or 0.0
        stdin.write(line)
        reading = asyncio.ensure_future(stdout.readline())
        try:
            for _ in range(_PATIENCE):
                done, _ = await asyncio.wait({reading}, timeout=timeout_s)
                if done:
                    break
                now_s = cpu_seconds(self._process.pid)
                if now_s is None or now_s - since_s > timeout_s / 2:
                    break
        finally:
            if not reading.done():
                reading.cancel()
        if not reading.done() or reading.cancelled():
            raise TimeoutError
        if not reading.result():
            raise EOFError
        return reading.result()

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):  # it ended by itself just now
                process.kill()
        await process.wait()


async def _started() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.grammar_trial",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # It finds the code where this process did, however that was started.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def _key(grammar: Grammar) -> bytes:
    text = grammar.text.encode("utf-8", "surrogatepass")
    return blake2b(grammar.kind.encode() + b"\0" + text, digest_size=16).digest()


def _refused(problem: str, param: str) -> InvalidRequestError:
    if len(problem) > _MAX_QUOTED_CHARS:
        problem = problem[:_MAX_QUOTED_CHARS] + "…"
    return InvalidRequestError(f"{param} cannot be used as a constraint: {problem}", param=param)
